"""ONNX: one file with the graph, the weights, the names of the classes and how to feed it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from fullfield.deploy.description import KEY, OUTPUTS, Description
from fullfield.deploy.formats.adaptive_pool import with_exportable_pooling
from fullfield.deploy.graph import ExportGraph, capture, in_half
from fullfield.errors import ConfigError, MissingExtraError
from fullfield.files import atomic_write

__all__ = ["OPSET", "write_onnx"]

OPSET = 18
"""The first with an antialiased Resize; all runtimes of the last years read it."""
INPUT = "images"
_MOST_BYTES = 2**31 - 2**24  # of weights: a protobuf message must stay under 2 GiB, the graph included


def write_onnx(
    module: ExportGraph,
    description: Description,
    path: str | Path,
    *,
    half: bool = False,
    preprocessing_inside: bool = False,
) -> Path:
    """Write a model as ONNX, whole or not at all.

    The graph has one input `images` (B, C, H, W), float32, values 0 to 1, or with `preprocessing_inside` one input
    `pixels` (1, H, W, C), uint8; and the outputs `OUTPUTS` of its task, float32. In its metadata lie the description
    under `KEY`, and `names` (JSON list of the classes) and `task` for other tools.

    Args:
        module: As `export_module` returned it.
        description: Likewise; a batch, height or width that is None is free in the graph, the others are fixed.
        path: The file to make or replace.
        half: Weights and arithmetic in float16.
        preprocessing_inside: The graph resizes and crops by itself, for classifiers; see `onnx_preprocess`.

    Returns:
        The path.

    Raises:
        ConfigError: The net can't be traced at free sizes, has an operator that ONNX lacks, weights that don't fit
            one file or float16, or preprocessing that ONNX can't carry. Nothing is written.
        MissingExtraError: onnx or onnxscript is not installed.
        RunError: The disk is full or the folder can't be written.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch's exporter needs it, and says so late
    except ImportError as error:
        raise MissingExtraError(f"ONNX needs {error.name}: pip install 'fullfield[export]'") from error
    described = replace(description, precision="fp16" if half else "fp32")
    if preprocessing_inside:
        from fullfield.deploy.formats.onnx_preprocess import checked_preprocess, merge_preprocessing

        preprocess = checked_preprocess(described)
        side = preprocess.image_size
        described = replace(described, batch=1, height=side, width=side)
    ready = in_half(module) if half else module
    _check_size(ready, described.name)
    program = with_exportable_pooling(capture(ready, described), described.name)
    proto = _converted(program, described)
    if preprocessing_inside:
        proto = merge_preprocessing(proto, preprocess)
        described = replace(described, height=None, width=None, preprocessing_inside=True)
    texts = {KEY: described.to_json(), "names": json.dumps(described.classes), "task": described.task}
    onnx.helper.set_model_props(proto, texts)
    onnx.checker.check_model(proto, full_check=True)
    file = Path(path)
    with atomic_write(file) as partial:
        partial.write_bytes(proto.SerializeToString())
    return file


def _check_size(module: ExportGraph, name: str) -> None:
    size = sum(x.numel() * x.element_size() for x in module.state_dict().values())
    if size > _MOST_BYTES:
        raise ConfigError(
            f"{name} has {size / 2**30:.1f} GiB of weights, and one ONNX file holds 2; export with --precision fp16 if"
            " that halves it enough, or --to torch"
        )


def _converted(program: ExportedProgram, description: Description) -> Any:
    """Turn the traced graph into an ONNX model, its free sizes named; an operator that ONNX lacks is named."""
    with _quiet():
        try:
            made = torch.onnx.export(
                program,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(OUTPUTS[description.task]),
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ConfigError(_unsupported(error, description.name)) from error
    assert made is not None  # noqa: S101 - for the type checker: it was not asked to write a file
    proto = made.model_proto
    _split_weights(proto.graph)
    _name_free_sizes(proto)
    return proto


def _unsupported(error: BaseException, name: str) -> str:
    texts: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        texts.append(str(cause))
        cause = cause.__cause__
    operators = sorted({found for text in texts for found in re.findall(r"OpOverload\(op='([^']+)'", text)})
    reason = (texts[-1].strip() or type(error).__name__).splitlines()[0][:200]
    what = f"the operator {', '.join(operators)}" if operators else f"all ({reason})"
    return f"ONNX can't carry {what} of {name}; export it with --to torch"


def _split_weights(graph: Any) -> None:
    """Store the halves of a weight that the graph would split at every call; only stored weights can be quantised."""
    from onnx import numpy_helper

    stored = {one.name: one for one in graph.initializer}
    splits = [node for node in graph.node if node.op_type == "Split" and node.input[0] in stored]
    for node in splits:
        weight = numpy_helper.to_array(stored[node.input[0]])
        (axis,) = (attribute.i for attribute in node.attribute if attribute.name == "axis")
        sizes = list(numpy_helper.to_array(stored[node.input[1]])) if len(node.input) > 1 else None
        each = -(-weight.shape[axis] // len(node.output))
        ends = np.cumsum(sizes)[:-1] if sizes else [each * (i + 1) for i in range(len(node.output) - 1)]
        for name, part in zip(node.output, np.split(weight, ends, axis), strict=True):
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(part), name))
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input} | {one.name for one in graph.output}
    for one in [one for one in graph.initializer if one.name not in used]:
        graph.initializer.remove(one)


def _name_free_sizes(proto: Any) -> None:
    """Call the free sizes batch, height and width wherever the tracer's symbols for them stand."""
    sizes = proto.graph.input[0].type.tensor_type.shape.dim
    names = {sizes[axis].dim_param: name for axis, name in ((0, "batch"), (2, "height"), (3, "width"))}
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda found: names.get(found[0], found[0]), dim.dim_param)
    for value in proto.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param and dim.dim_param not in names.values():
                dim.dim_param = "N"  # of a detector's boxes: a sum over its maps, not one for people to read


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the optimiser's remarks on what it leaves as it is."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
