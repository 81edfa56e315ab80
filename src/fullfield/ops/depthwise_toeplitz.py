"""Depthwise convolution of small maps as one matrix a channel: y_c = T_c x_c, T_c of H'W' rows and HW columns.

T_c[(h, w), (s*h + d*i - p, s*w + d*j - p)] = w_c[i, j], zero elsewhere: a Toeplitz matrix of Toeplitz blocks. It is
built anew at each call, so it needs a batch that is large beside the map; its cost does not depend on the kernel.
What is not finite spreads over its map of one sample and channel.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from fullfield.errors import ConfigError
from fullfield.ops.depthwise_shape import DepthwiseShape

__all__ = ["check_toeplitz", "forward_toeplitz", "grad_input_toeplitz", "grad_weight_toeplitz"]

MOST_PIXELS = 16 * 16  # 256 KiB of float32 a channel


def check_toeplitz(shape: DepthwiseShape) -> None:
    """Refuse maps whose matrices would be too large.

    Raises:
        ConfigError: Names the map, the bound and the way out.
    """
    for height, width in (shape.map_size, shape.output_size):
        if height * width > MOST_PIXELS:
            raise ConfigError(
                f"path 'toeplitz' of depthwise_conv2d is for maps of at most {MOST_PIXELS} pixels, "
                f"got {height}x{width}; use path='fft' or path=None"
            )


def forward_toeplitz(x: Tensor, weight: Tensor, shape: DepthwiseShape) -> Tensor:
    """Convolve, (B, C, H, W) -> (B, C, H', W')."""
    y_CBP = torch.bmm(_by_channel(x), _matrices(weight, shape).transpose(1, 2))
    return _by_sample(y_CBP, shape.output_size)


def grad_input_toeplitz(g: Tensor, weight: Tensor, shape: DepthwiseShape) -> Tensor:
    """Return the input's gradient, (B, C, H', W') -> (B, C, H, W)."""
    return _by_sample(torch.bmm(_by_channel(g), _matrices(weight, shape)), shape.map_size)


def grad_weight_toeplitz(x: Tensor, g: Tensor, shape: DepthwiseShape) -> Tensor:
    """Return the weight's gradient, (C, 1, KH, KW): the sum over each tap's entries of g^T x."""
    products = torch.bmm(_by_channel(g).transpose(1, 2), _by_channel(x)).flatten(1)  # (C, H'W' * HW)
    taps = shape.kernel[0] * shape.kernel[1]
    wide = torch.promote_types(x.dtype, torch.float32)
    dw = torch.zeros(shape.channels, taps + 1, dtype=wide, device=x.device)
    dw.index_add_(1, _tap_of_entry(shape, x.device).flatten(), products.to(wide))
    return dw[:, :taps].to(x.dtype).view(shape.channels, 1, *shape.kernel)


def _matrices(weight: Tensor, shape: DepthwiseShape) -> Tensor:
    """Return T, (C, H'W', HW)."""
    taps = torch.cat([weight.flatten(1), weight.new_zeros(shape.channels, 1)], dim=1)
    return taps[:, _tap_of_entry(shape, weight.device)]


def _tap_of_entry(shape: DepthwiseShape, device: torch.device) -> Tensor:
    """Return the number i*KW + j of the tap in each entry of T, (H'W', HW); KH*KW stands for zero."""
    rows, columns = (
        _taps_of_axis(*sizes, shape.stride, shape.dilation)
        for sizes in zip(shape.map_size, shape.output_size, shape.kernel, shape.padding, strict=True)
    )
    number = rows[:, None, :, None] * shape.kernel[1] + columns[None, :, None, :]  # (H', W', H, W)
    nowhere = (rows < 0)[:, None, :, None] | (columns < 0)[None, :, None, :]
    number = number.masked_fill(nowhere, shape.kernel[0] * shape.kernel[1])
    entries: Tensor = number.flatten(2).flatten(0, 1)
    return entries.to(device)


@lru_cache(maxsize=256)
def _taps_of_axis(size: int, output: int, kernel: int, padding: int, stride: int, dilation: int) -> Tensor:
    """Return the tap that joins each output (rows) and input (columns) of one axis, -1 for none."""
    lag: Tensor = torch.arange(size)[None] - stride * torch.arange(output)[:, None] + padding
    tap = lag.div(dilation, rounding_mode="floor")
    return torch.where((lag % dilation == 0) & (tap >= 0) & (tap < kernel), tap, -1)


def _by_channel(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (C, B, HW)."""
    return x.flatten(2).transpose(0, 1)


def _by_sample(y_CBP: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, B, HW) -> (B, C, H, W)."""
    return y_CBP.transpose(0, 1).reshape(y_CBP.shape[1], y_CBP.shape[0], *size)
