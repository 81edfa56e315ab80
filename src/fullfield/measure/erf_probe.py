"""Receptive field of one unit by experiment: make input pixels NaN and see whether the unit becomes NaN.

NaN passes through sums, products, norms, activations, softmax and maximum pooling whatever the weights are, so it
marks what the arithmetic could depend on, also where no rule follows it (windows, shifts, attention). The window is
found by bisection from each of the four sides, so it is a bounding box inside this image. A convolution that is
computed through a transform (Winograd, FFT) would let NaN into a whole tile: our depthwise convolutions take PyTorch's
own path here, and float64 avoids Winograd.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullfield.layers.depthwise import DepthwiseConv2d
from fullfield.measure.feature_maps import feature_map

__all__ = ["dependence_window"]


@torch.no_grad()
def dependence_window(
    model: nn.Module, layer: str, position: tuple[int, int], images: Tensor
) -> tuple[int, int, int, int] | None:
    """Return the smallest window of the image that holds every pixel on which a unit could depend.

    Args:
        model: In eval mode, on the device of the images.
        layer: A name of `list_feature_maps`.
        position: (row, column) of the unit.
        images: (1, C, H, W), finite values of any kind.

    Returns:
        (top, left, bottom, right), the last two exclusive; None if the unit depends on no pixel.

    Raises:
        ConfigError: There is no such layer, or its output is no map.
    """
    H, W = images.shape[2:]

    def touched(*windows: tuple[int, int, int, int]) -> list[bool]:
        probes = images[:1].repeat(len(windows), 1, 1, 1)
        for probe, (top, left, bottom, right) in zip(probes, windows, strict=True):
            probe[:, top:bottom, left:right] = torch.nan
        with ExitStack() as hooks:
            for module in model.modules():
                if isinstance(module, DepthwiseConv2d):
                    hooks.callback(module.register_forward_hook(_convolve_directly, prepend=True).remove)
            units = feature_map(model, layer, probes)[:, :, position[0], position[1]]
        return [bool(row.isnan().any()) for row in units]

    if not touched((0, 0, H, W))[0]:
        return None
    # so many rows from the top do not matter, so many do; the other three sides alike, each from its border
    no, yes = [0, 0, 0, 0], [H, W, H, W]
    while any(most - least > 1 for least, most in zip(no, yes, strict=True)):
        tried = [(least + most) // 2 if most - least > 1 else most for least, most in zip(no, yes, strict=True)]
        top, left, bottom, right = tried
        strips = (0, 0, top, W), (0, 0, H, left), (H - bottom, 0, H, W), (0, W - right, H, W)
        for side, hit in enumerate(touched(*strips)):
            if hit:
                yes[side] = tried[side]
            else:
                no[side] = tried[side]
    return yes[0] - 1, yes[1] - 1, H - yes[2] + 1, W - yes[3] + 1


def _convolve_directly(module: DepthwiseConv2d, inputs: Any, _output: Tensor) -> Tensor:
    c = module
    return F.conv2d(inputs[0], c.weight, c.bias, c.stride, c.padding, c.dilation, c.groups)
