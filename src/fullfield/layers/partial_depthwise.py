"""Depthwise convolution on a share of the channels; the others pass as they are.

Source: partial convolution, FasterNet (arXiv 2303.03667, section 3.2), with a depthwise kernel as in InceptionNeXt
(arXiv 2303.16900, section 3.2). Neighbouring channels are redundant and the 1x1 convolutions that follow mix them, so a
share of 1/4 gathers space at a quarter of the products and of the memory that is read and written.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fullfield.errors import ConfigError
from fullfield.layers.depthwise import DepthwiseConv2d

__all__ = ["PartialDepthwiseConv2d"]


class PartialDepthwiseConv2d(nn.Module):
    """Depthwise convolution of the first channels, (B, C, H, W) -> (B, C, H, W).

    Args:
        channels: C.
        kernel_size: Odd, or (height, width) of a strip, both odd.
        share: Part of the channels that are convolved, more than 0 and at most 1; rounded to whole channels, at least
            one.
        dilation: Distance of the kernel's taps.
        bias: Learn a bias.
        device: Where the parameters live.
        dtype: Their dtype.

    Raises:
        ConfigError: The share is not in that range.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | tuple[int, int],
        share: float = 0.25,
        dilation: int = 1,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise ConfigError(f"share must be more than 0 and at most 1 (all channels), got {share!r}")
        convolved = max(1, round(share * channels))
        self.sizes = (convolved, channels - convolved)
        self.conv = DepthwiseConv2d(convolved, kernel_size, dilation=dilation, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve the first channels and put the others behind them."""
        if not self.sizes[1]:
            return self.conv(x)  # type: ignore[no-any-return]
        convolved, passed = x.split(self.sizes, dim=1)
        return torch.cat((self.conv(convolved), passed), dim=1)
