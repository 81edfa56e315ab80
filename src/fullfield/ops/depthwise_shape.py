"""Sizes of one depthwise convolution, and two exact changes of it that every faster path uses.

With padding p, dilation d and stride s, y[h] = sum_i w[i] x[s*h + d*i - p] in each direction, zeros outside the map.
Cropping: a tap that meets only padding is dropped (a 51x5 kernel on a 7x7 map is 13x5). Transposing: at stride 1
the gradient of the input is again such a convolution, of the gradient with the kernel turned by 180 degrees and
padding d*(k-1) - p.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

__all__ = ["DepthwiseShape", "shape_of", "transpose"]


class DepthwiseShape(NamedTuple):
    """Sizes of a depthwise convolution; pairs are (height, width)."""

    batch: int
    channels: int
    map_size: tuple[int, int]
    """H, W of the input, in pixels."""
    kernel: tuple[int, int]
    stride: int
    padding: tuple[int, int]
    dilation: int

    @property
    def reach(self) -> tuple[int, int]:
        """Distance between the first and the last tap, d*(k-1), in pixels."""
        return self.dilation * (self.kernel[0] - 1), self.dilation * (self.kernel[1] - 1)

    @property
    @lru_cache(maxsize=1024)  # noqa: B019 - a tuple of numbers: what is kept is small
    def output_size(self) -> tuple[int, int]:
        """H', W' of the output, in pixels."""
        height, width = (
            (size + 2 * pad - reach - 1) // self.stride + 1
            for size, pad, reach in zip(self.map_size, self.padding, self.reach, strict=True)
        )
        return height, width

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the direct convolution, those with padding included."""
        return self.batch * self.channels * math.prod(self.output_size) * math.prod(self.kernel)

    @property
    @lru_cache(maxsize=1024)  # noqa: B019
    def dead_taps(self) -> tuple[int, int]:
        """How many rows and columns of taps at either edge of the kernel meet nothing but padding."""
        rows, columns = (
            _dead(*sizes, self.stride, self.dilation)
            for sizes in zip(self.map_size, self.output_size, self.kernel, self.padding, strict=True)
        )
        return rows, columns

    @lru_cache(maxsize=1024)  # noqa: B019
    def cropped(self) -> DepthwiseShape:
        """Return the sizes without the dead taps; output size and values are the same."""
        rows, columns = self.dead_taps
        return self._replace(
            kernel=(self.kernel[0] - 2 * rows, self.kernel[1] - 2 * columns),
            padding=(self.padding[0] - self.dilation * rows, self.padding[1] - self.dilation * columns),
        )

    def crop(self, weight: Tensor) -> Tensor:
        """Return a kernel (C, 1, KH, KW) of these sizes without its dead taps (a view)."""
        rows, columns = self.dead_taps
        if not rows and not columns:
            return weight
        return weight[:, :, rows : self.kernel[0] - rows, columns : self.kernel[1] - columns]

    def uncrop(self, grad_weight: Tensor) -> Tensor:
        """Return the kernel's gradient with zeros for the dead taps, (C, 1, KH, KW)."""
        rows, columns = self.dead_taps
        return F.pad(grad_weight, (columns, columns, rows, rows)) if rows or columns else grad_weight


def shape_of(
    x: Tensor, kernel: tuple[int, int], stride: int, padding: tuple[int, int], dilation: int
) -> DepthwiseShape:
    """Return the sizes of the convolution of a map (B, C, H, W)."""
    return DepthwiseShape(x.shape[0], x.shape[1], (x.shape[2], x.shape[3]), kernel, stride, padding, dilation)


def transpose(g: Tensor, weight: Tensor, shape: DepthwiseShape) -> tuple[Tensor, Tensor, DepthwiseShape]:
    """Return map, kernel and sizes of the convolution that gives the input's gradient, at stride 1.

    Args:
        g: (B, C, H', W'), the output's gradient.
        weight: (C, 1, KH, KW).
        shape: Of the convolution whose gradient is asked for.
    """
    height, width = (reach - pad for reach, pad in zip(shape.reach, shape.padding, strict=True))
    # Padding longer than the kernel: the outermost outputs meet no pixel, and give no gradient.
    rows, columns = max(0, -height), max(0, -width)
    g = g[:, :, rows : g.shape[2] - rows, columns : g.shape[3] - columns]
    padding = (max(0, height), max(0, width))
    return g, weight.flip(2, 3), shape._replace(map_size=(g.shape[2], g.shape[3]), padding=padding)


def _dead(size: int, output: int, kernel: int, padding: int, stride: int, dilation: int) -> int:
    """Return how many taps at both ends are dead on one axis; the same number at either end, to keep symmetry."""
    last = stride * (output - 1)  # where the window of the last output begins, before padding
    before = sum(last + dilation * tap - padding < 0 for tap in range(kernel))
    after = sum(dilation * tap - padding > size - 1 for tap in range(kernel))
    return min(before, after, padding // dilation)
