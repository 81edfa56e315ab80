"""Preprocessing as nodes of an ONNX graph: from the pixels of a photograph of any size to a classifier's square.

The geometry is `data.ResizedCentre`'s, roundings included, and the filter Pillow's: Resize has been antialiased since
opset 18. The whole photograph is resized before its square is cut, so one that is thousands of times as long as it is
wide takes much memory here.
"""

from __future__ import annotations

from typing import Any

from fullfield.data.preprocess import Preprocess
from fullfield.deploy.description import Description
from fullfield.errors import ConfigError

__all__ = ["checked_preprocess", "merge_preprocessing"]

_PREFIX = "preprocess/"
_MODES = {"bilinear": "linear", "bicubic": "cubic"}
_GRAPH = """
<ir_version: {ir_version}, opset_import: ["" : {opset}]>
preprocess (uint8[1, height, width, {channels}] pixels) => (float[1, {channels}, {side}, {side}] values)
<int64[1] side = {{{side}}}, int64[1] short_side = {{{short_side}}}, int64[2] rows_and_columns = {{2, 3}},
 int64[2] planes = {{1, {channels}}}, int64[4] square_shape = {{1, {channels}, {side}, {side}}},
 float two = {{2.0}}, float white = {{255.0}}>
{{
    image = Transpose <perm = [0, 3, 1, 2]> (pixels)
    size = Shape <start = 1, end = 3> (pixels)
    shorter = ReduceMin (size)
    scaled = Mul (size, short_side)
    resized = Div (scaled, shorter)
    margin = Sub (resized, side)
    margin_float = Cast <to = 1> (margin)
    half_margin = Div (margin_float, two)
    start_float = Round (half_margin)
    start = Cast <to = 7> (start_float)
    end = Add (start, side)
    sizes = Concat <axis = 0> (planes, resized)
    whole = Resize <mode = "{mode}", antialias = 1, cubic_coeff_a = -0.5> (image, "", "", sizes)
    cut = Slice (whole, start, end, rows_and_columns)
    square = Reshape (cut, square_shape)
    square_float = Cast <to = 1> (square)
    values = Div (square_float, white)
}}
"""


def checked_preprocess(description: Description) -> Preprocess:
    """Return the preprocessing of a described model, if a graph can do it.

    Raises:
        ConfigError: The model is no classifier, or its interpolation is Lanczos', which ONNX has not.
    """
    if description.task != "classify":
        raise ConfigError(
            f"preprocessing goes inside the file for classifiers alone, and {description.name} is to"
            f" {description.task}; leave out --preprocessing-inside"
        )
    preprocess = Preprocess.from_dict(description.preprocess)
    if preprocess.interpolation not in _MODES:
        raise ConfigError(
            f"ONNX's operator Resize has no {preprocess.interpolation} interpolation, which {description.name} wants;"
            " leave out --preprocessing-inside"
        )
    return preprocess


def merge_preprocessing(proto: Any, preprocess: Preprocess) -> Any:
    """Put resizing, cropping and scaling to 0..1 in front of an ONNX model.

    Args:
        proto: Of one input (1, C, S, S), float32, values 0 to 1, S being `preprocess.image_size`.
        preprocess: As `checked_preprocess` returned it.

    Returns:
        A model whose input is `pixels` (1, H, W, C), uint8, of any H and W, RGB or grey, and upright.
    """
    import onnx

    front = onnx.parser.parse_model(
        _GRAPH.format(
            ir_version=proto.ir_version,
            opset=next(one.version for one in proto.opset_import if one.domain == ""),
            channels=preprocess.channels,
            side=preprocess.image_size,
            short_side=round(preprocess.image_size / preprocess.crop_share),
            mode=_MODES[preprocess.interpolation],
        )
    )
    front = onnx.compose.add_prefix(front, _PREFIX, rename_inputs=False)  # its names must not meet the net's
    return onnx.compose.merge_models(front, proto, io_map=[(f"{_PREFIX}values", proto.graph.input[0].name)])
