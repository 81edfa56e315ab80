"""OpenVINO's intermediate representation: the graph as .xml, the weights as .bin beside it.

The graph comes by way of ONNX. OpenVINO's own reader of PyTorch graphs does not know the largest and the smallest of
two sizes (`sym_max`, `sym_min`), on which region operators of free size depend. The ONNX model is read by OpenVINO's
runtime and not by `openvino.convert_model`, which reports its use to the network.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fullfield.deploy.description import KEY, Description
from fullfield.deploy.formats.onnx_file import write_onnx
from fullfield.deploy.formats.scratch import scratch_folder
from fullfield.deploy.graph import ExportGraph, in_half
from fullfield.errors import ConfigError, MissingExtraError, RunError
from fullfield.files import atomic_write

__all__ = ["save_openvino", "write_openvino"]


def write_openvino(module: ExportGraph, description: Description, path: str | Path, *, half: bool = False) -> Path:
    """Write a model as OpenVINO's .xml and .bin, both or neither.

    The model has one input `images` (B, C, H, W), float32, values 0 to 1, and the outputs `OUTPUTS` of its task,
    float32. The description lies in its rt_info under `KEY`.

    Args:
        module: As `export_module` returned it.
        description: Likewise; a batch, height or width that is None is free, the others are fixed.
        path: The .xml file to make or replace; the weights go to the same name with .bin.
        half: Weights in float16. CPUs still compute in float32; GPUs and NPUs choose by themselves.

    Returns:
        The path of the .xml file.

    Raises:
        ConfigError: The net can't be traced at free sizes, has an operator that ONNX or OpenVINO lacks, or weights
            that don't fit float16. Nothing is written.
        MissingExtraError: openvino, onnx or onnxscript is not installed.
        RunError: The disk is full or the folder can't be written.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("writing OpenVINO's files needs openvino: pip install 'fullfield[export]'") from error
    if half:
        in_half(module)  # for its check of the weights alone: OpenVINO rounds them by itself
    file = Path(path)
    with scratch_folder(file) as folder:
        onnx_file = write_onnx(module, description, folder / "graph.onnx")
        _refuse_fourier(onnx_file, description.name)
        try:
            model = openvino.Core().read_model(onnx_file)
        except RuntimeError as error:
            raise ConfigError(_unsupported(error, description.name)) from error
        _crop_by_slices(model)
        return save_openvino(model, replace(description, precision="fp16" if half else "fp32"), file)


def _refuse_fourier(onnx_file: Path, name: str) -> None:
    """Raise ConfigError for a graph with Fourier transforms, of which OpenVINO 2026.4 makes a file without output."""
    import onnx

    if any(node.op_type == "DFT" for node in onnx.load(onnx_file).graph.node):
        raise ConfigError(f"OpenVINO can't carry the operator DFT of {name}; export it with --to onnx or --to torch")


def save_openvino(model: Any, description: Description, file: Path) -> Path:
    """Save an OpenVINO model with its description, both files or neither.

    Args:
        model: An `openvino.Model`.
        description: Put into it; its precision decides whether float weights are stored in float16.
        file: The .xml file to make or replace.

    Returns:
        The file.

    Raises:
        RunError: The disk is full or the folder can't be written.
    """
    import openvino

    model.set_rt_info(description.to_json(), [KEY])
    with scratch_folder(file) as folder:
        try:
            openvino.save_model(model, folder / "model.xml", compress_to_fp16=description.precision == "fp16")
        except RuntimeError as error:
            raise RunError(f"{file} can't be written ({str(error).strip()[-200:]}); is the disk full?") from error
        # The block's end renames the weights first: a reader that finds the new .xml finds its .bin too.
        with atomic_write(file) as graph, atomic_write(file.with_suffix(".bin")) as weights:
            (folder / "model.xml").replace(graph)
            (folder / "model.bin").replace(weights)
    return file


def _crop_by_slices(model: Any) -> None:
    """Put a padding and a slice in the place of paddings whose amounts are computed and may be negative, in place.

    OpenVINO's CPU plugin (2026.4) takes the least size that a map can have for the least that a crop of it can have,
    and refuses, or returns nothing for, a crop that is smaller. Of an amount that is computed nobody knows the sign
    before it runs, so that all of them are treated alike.
    """
    from openvino import opset15 as ops

    zero, one = ops.constant(np.int64(0)), ops.constant(np.ones(4, np.int64))
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Pad" or not _is_computed(node):
            continue
        x, value = node.input_value(0), node.input_value(3)
        begin, end = (ops.convert(node.input_value(i), "i64") for i in (1, 2))
        padded = ops.pad(x, ops.maximum(begin, zero), ops.maximum(end, zero), node.get_pad_mode(), value)
        start = ops.negative(ops.minimum(begin, zero))
        stop = ops.add(ops.shape_of(padded, "i64"), ops.minimum(end, zero))
        cut = ops.slice(padded, start, stop, one, ops.constant(np.arange(4)))
        cut.set_friendly_name(node.get_friendly_name())
        node.output(0).replace(cut.output(0))
    model.validate_nodes_and_infer_types()


def _is_computed(pad: Any) -> bool:
    amounts = [pad.input_value(i).get_node().get_type_name() for i in (1, 2)]
    return amounts != ["Constant", "Constant"] and len(pad.input_value(0).get_partial_shape()) == 4


def _unsupported(error: RuntimeError, name: str) -> str:
    text = str(error)
    found = re.search(r"ONNX operations?:\s*([^\n]+)", text) or re.search(r"No conversion rule[^:]*:\s*([^\n]+)", text)
    last = text.strip().splitlines()[-1][:200]
    what = f"the operator {found[1].strip()}" if found else f"it ({last})"
    return f"OpenVINO can't carry {what} of {name}; export it with --to onnx or --to torch"
