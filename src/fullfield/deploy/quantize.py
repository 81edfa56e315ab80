"""Int8 after training: exported files whose convolutions and linear layers compute with 8-bit integers.

Ranges of activations are fitted to calibration images. One rule holds for both formats: products with trained weights
that have another such product before them and one after them become int8, with one scale for each output channel of
the weights; all else stays in float. That leaves out three things on purpose. The first product (the stem's
convolution) and the last (the classifier, the last convolution of each head) are few of the MACs, and rounding weighs
most there: their input is the image, their output the answer. Products of activations with activations (region
point-wise convolution, attention) have weights that are themselves computed, without a range of their own. And
normalising images costs nothing.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fullfield.deploy.description import KEY, Description
from fullfield.deploy.engines.contract import check_images, damaged, input_name, read_description
from fullfield.errors import ConfigError, MissingExtraError
from fullfield.files import atomic_write

__all__ = ["quantize_onnx", "quantize_openvino"]

_QUANTIZED = ("Conv", "Gemm", "MatMul")
_TOLERANCE = 1e-3  # beyond 0 and 1, of resized images


def quantize_onnx(source: str | Path, target: str | Path, calibration: Sequence[NDArray[Any]]) -> Path:
    """Write an int8 copy of an exported ONNX file, by ONNX Runtime (QuantizeLinear and DequantizeLinear nodes).

    Weights are symmetric, one scale for each output channel; activations are unsigned, one scale a tensor, from the
    least to the greatest value that calibration met.

    Args:
        source: Of `write_onnx`, in float32.
        target: The file to make or replace.
        calibration: Images as the file takes them, each (B, C, H, W) float32, values 0 to 1; their sizes may differ
            where the file's are free. Some hundred, from the training images, are enough.

    Returns:
        The target.

    Raises:
        ConfigError: There are no images, they are not such images, the file is not in float32, or the net is too small
            to have a product between its first and its last.
        CheckpointError: The source is damaged, or Fullfield did not export it.
        MissingExtraError: onnx or onnxruntime is not installed.
        RunError: The disk is full or the folder can't be written.
    """
    try:
        import onnx
        from onnxruntime import quantization
    except ImportError as error:
        raise MissingExtraError(f"int8 of ONNX files needs {error.name}: pip install 'fullfield[quantize]'") from error
    from fullfield.deploy.formats.scratch import scratch_folder

    file, out = Path(source), Path(target)
    try:
        model = onnx.load(file)
    except Exception as error:  # protobuf's, or the file system's
        raise damaged(file, error) from error
    texts = {prop.key: prop.value for prop in model.metadata_props}
    description = read_description(texts.get(KEY), file)
    images = _checked(calibration, description)
    inner = _inner_products(_onnx_operations(model.graph))
    with scratch_folder(out) as folder, _quiet("root"):
        made = folder / "int8.onnx"
        quantization.quantize_static(
            model,
            made,
            _Reader(images, input_name(description)),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTIZED),
            nodes_to_quantize=sorted(inner),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
        )
        quantized = onnx.load(made)
        onnx.helper.set_model_props(quantized, {**texts, KEY: replace(description, precision="int8").to_json()})
        with atomic_write(out) as partial:
            partial.write_bytes(quantized.SerializeToString())
    return out


def quantize_openvino(source: str | Path, target: str | Path, calibration: Sequence[NDArray[Any]]) -> Path:
    """Write an int8 copy of an exported OpenVINO model, by NNCF.

    Weights are symmetric, one scale for each output channel; activations are asymmetric (NNCF's preset "mixed"), and
    biases are corrected for the error that rounding brings on average.

    Args:
        source: The .xml file of `write_openvino`, in float32, beside its .bin.
        target: The .xml file to make or replace.
        calibration: As in `quantize_onnx`.

    Returns:
        The target.

    Raises:
        ConfigError: There are no images, they are not such images, the file is not in float32, or the net is too small
            to have a product between its first and its last.
        CheckpointError: The source is damaged, or Fullfield did not export it.
        MissingExtraError: openvino or nncf is not installed.
        RunError: The disk is full or the folder can't be written.
    """
    os.environ.setdefault("NNCF_CI", "1")  # elsewhere NNCF reports its use to the network
    try:
        import nncf
        import openvino
    except ImportError as error:
        raise MissingExtraError(
            f"int8 of OpenVINO files needs {error.name}: pip install 'fullfield[quantize]'"
        ) from error
    from fullfield.deploy.formats.openvino_file import save_openvino

    file, out = Path(source), Path(target)
    try:
        model = openvino.Core().read_model(file)
    except RuntimeError as error:
        raise damaged(file, error) from error
    text = str(model.get_rt_info(KEY).astype(str)) if model.has_rt_info(KEY) else None
    description = read_description(text, file)
    images = _checked(calibration, description)
    operations = _openvino_operations(model)
    inner = _inner_products(operations)
    outside = [one.name for one in operations if one.name not in inner]
    with _quiet("nncf"), contextlib.redirect_stdout(io.StringIO()):  # its progress bars
        quantized = nncf.quantize(
            model,
            nncf.Dataset(images),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=outside, validate=False),
        )
    return save_openvino(quantized, replace(description, precision="int8"), out)


def _checked(calibration: Sequence[NDArray[Any]], description: Description) -> list[NDArray[Any]]:
    """Return the images in batches of the file's size.

    Raises:
        ConfigError: There are none, or they are not as the file takes them.
    """
    if description.precision != "fp32":
        raise ConfigError(f"the file is in {description.precision}; int8 is made of one in fp32: export that first")
    if description.preprocessing_inside:
        raise ConfigError("the file holds its preprocessing, and int8 of it can't be made; export it without")
    if not len(calibration):
        raise ConfigError("int8 needs calibration images, and there are none; give a folder, some hundred are enough")
    any_batch = replace(description, batch=None)
    for images in calibration:
        check_images(images, any_batch)
        low, high = float(images.min()), float(images.max())
        if low < -_TOLERANCE or high > 1 + _TOLERANCE:
            raise ConfigError(
                f"calibration images reach from {low:g} to {high:g}; give values from 0 to 1, not normalised"
            )
    return list(calibration) if description.batch is None else _rebatched(calibration, description.batch)


def _rebatched(calibration: Sequence[NDArray[Any]], batch: int) -> list[NDArray[Any]]:
    """Put images of one size together in batches of one number, the last filled up with the first images again."""
    by_size: dict[tuple[int, ...], list[NDArray[Any]]] = defaultdict(list)
    for images in calibration:
        by_size[images.shape[2:]].extend(images)
    batches = []
    for same in by_size.values():
        count = -(-len(same) // batch) * batch
        filled = [same[i % len(same)] for i in range(count)]
        batches += [np.stack(filled[i : i + batch]) for i in range(0, count, batch)]
    return batches


class _Reader:
    """Calibration images as ONNX Runtime asks for them: one call's inputs at a time, then None."""

    def __init__(self, images: list[NDArray[Any]], name: str) -> None:
        self._images = images
        self._name = name
        self.rewind()

    def rewind(self) -> None:
        """Start again."""
        self._left = iter(self._images)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next inputs by name, or None at the end."""
        images = next(self._left, None)
        return None if images is None else {self._name: images}


@dataclass(frozen=True)
class _Operation:
    """One operation that depends on the images, of a graph of either format."""

    name: str
    inputs: list[str]
    outputs: list[str]
    product: bool
    """Whether it multiplies by trained weights."""


def _onnx_operations(graph: Any) -> list[_Operation]:
    """Return an ONNX graph's operations in the order of computing."""
    constant = {one.name for one in graph.initializer}
    operations = []
    for node in graph.node:
        inputs = [name for name in node.input if name]
        if node.op_type == "Constant" or (inputs and constant.issuperset(inputs)):
            constant.update(node.output)  # what is computed from constants is one too
            continue
        product = node.op_type in _QUANTIZED and node.input[1] in constant
        operations.append(_Operation(node.name, inputs, list(node.output), product))
    return operations


def _openvino_operations(model: Any) -> list[_Operation]:
    """Return an OpenVINO model's operations in the order of computing. A name stands for the outputs too."""
    products = {"Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul"}
    constant: set[str] = set()
    operations = []
    for node in model.get_ordered_ops():
        name, kind = node.get_friendly_name(), node.get_type_name()
        inputs = [value.get_node().get_friendly_name() for value in node.input_values()]
        if kind == "Constant" or (inputs and constant.issuperset(inputs)):
            constant.add(name)
        elif kind not in ("Parameter", "Result"):
            operations.append(_Operation(name, inputs, [name], kind in products and inputs[1] in constant))
    return operations


def _inner_products(operations: Sequence[_Operation]) -> set[str]:
    """Return the names of the products by trained weights with another one before and another one after them.

    Raises:
        ConfigError: There is none.
    """
    behind: set[str] = set()  # values that a product leads to
    followed: set[str] = set()  # values that lead to a product
    for one in operations:
        if one.product or not behind.isdisjoint(one.inputs):
            behind.update(one.outputs)
    inner = set()
    for one in reversed(operations):
        after = not followed.isdisjoint(one.outputs)
        if one.product and after and not behind.isdisjoint(one.inputs):
            inner.add(one.name)
        if one.product or after:
            followed.update(one.inputs)
    if not inner:
        raise ConfigError("int8 leaves a net's first and last product in float, and this one has none between them")
    return inner


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Hold back a library's remarks; errors are told."""
    logger = logging.getLogger(None if name == "root" else name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
