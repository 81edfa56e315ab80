"""Multi-order gated aggregation, the spatial part of a MogaNet block.

Source: "MogaNet: Multi-order Gated Aggregation Network" (ICLR 2024, arXiv:2211.03295), section 4.2, equations 4 to 7:

    y = 1x1(x);  z = SiLU(y + sigma * (y - mean(y)))           feature decomposition, mean over the map
    SiLU(1x1(z)) * SiLU(orders(z))  ->  1x1                    gate and context

`orders` convolves all channels 5x5, then a share of them 5x5 with dilation 2 and another 7x7 with dilation 3, so that
channels of three receptive fields (5, 13 and 23 pixels) lie side by side, and mixes them by a 1x1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullfield.errors import ConfigError
from fullfield.layers.depthwise import DepthwiseConv2d

__all__ = ["KERNEL_SIZES", "MultiOrderDepthwise", "MultiOrderGatedAggregation", "split_channels"]

KERNEL_SIZES = (5, 5, 7)
"""Sides of the three depthwise kernels: on all channels, on the second share, on the third."""


def split_channels(dim: int, ratio: Sequence[int]) -> tuple[int, ...]:
    """Return how many channels each share gets.

    Args:
        dim: Channels in all.
        ratio: Such as (1, 3, 4).

    Raises:
        ConfigError: The sum of the ratio does not divide the channels.
    """
    total = sum(ratio)
    if dim % total:
        raise ConfigError(
            f"channel_split {tuple(ratio)} cuts channels into {total} parts, which {dim} channels are not a multiple"
            f" of; take {dim // total * total or total} channels or another split"
        )
    return tuple(dim // total * part for part in ratio)


class MultiOrderDepthwise(nn.Module):
    """Depthwise convolutions of three receptive fields side by side, then 1x1, (B, C, H, W) -> (B, C, H, W).

    Args:
        dim: Channels C.
        dilations: Of the three kernels, 5x5, 5x5 and 7x7.
        channel_split: Ratio of channels that end with each kernel.
        device: Where the parameters live.
        dtype: Their dtype.

    Raises:
        ConfigError: The sum of the split does not divide C.
    """

    def __init__(
        self,
        dim: int,
        dilations: Sequence[int] = (1, 2, 3),
        channel_split: Sequence[int] = (1, 3, 4),
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.split = split_channels(dim, channel_split)
        self.depthwise = nn.ModuleList(
            DepthwiseConv2d(channels, kernel_size, dilation=dilation, device=device, dtype=dtype)
            for channels, kernel_size, dilation in zip((dim, *self.split[1:]), KERNEL_SIZES, dilations, strict=True)
        )
        self.pointwise = nn.Conv2d(dim, dim, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve all channels, then the later shares once more, and mix."""
        first, second, third = self.depthwise
        low, middle, high = first(x).split(self.split, dim=1)
        return self.pointwise(torch.cat((low, second(middle), third(high)), dim=1))  # type: ignore[no-any-return]


class MultiOrderGatedAggregation(nn.Module):
    """Decompose, then gate a context of three receptive fields, (B, C, H, W) -> (B, C, H, W).

    The shortcut around it is not part of it: `ShortcutBranch` adds it.

    Args:
        dim: Channels C.
        dilations: Of the three depthwise kernels.
        channel_split: Ratio of channels that end with each kernel.
        scale: Start value of the per-channel factor sigma.
        device: Where the parameters live.
        dtype: Their dtype.

    Raises:
        ConfigError: The sum of the split does not divide C.
    """

    def __init__(
        self,
        dim: int,
        dilations: Sequence[int] = (1, 2, 3),
        channel_split: Sequence[int] = (1, 3, 4),
        scale: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(dim, dim, 1, device=device, dtype=dtype)
        self.sigma = nn.Parameter(torch.full((dim,), scale, device=device, dtype=dtype))
        self.gate = nn.Conv2d(dim, dim, 1, device=device, dtype=dtype)
        self.orders = MultiOrderDepthwise(dim, dilations, channel_split, device=device, dtype=dtype)
        self.project_out = nn.Conv2d(dim, dim, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Aggregate what lies around every pixel and gate it by the pixel."""
        y = self.project_in(x)
        # one multiply-add; the equation as written takes two passes over the map
        z = F.silu(torch.addcmul(y, self.sigma[:, None, None], y - y.mean((2, 3), keepdim=True)))
        return self.project_out(F.silu(self.gate(z)) * F.silu(self.orders(z)))  # type: ignore[no-any-return]

    @property
    def first_conv(self) -> nn.Conv2d:
        """The 1x1 convolution that may take over the norm before this layer."""
        return self.project_in

    @property
    def last_conv(self) -> nn.Conv2d:
        """The 1x1 convolution that may take over the factor after this layer."""
        return self.project_out
