"""RPWConv as a module: the operator `ops.region_pwconv` with its one learned number a head, s.

Source: RaCNN (ICLR 2025 submission); s is the only weight. Ours: its start value. With s = 1 the softmax over a
wide row is nearly uniform and the layer averages all channels; s = ln(d) + 2 keeps a dominant diagonal for heads
of d channels. For the inner product, whose logits grow with the window, the same diagonal is met at windows of
64 pixels of unit variance (56 x 56 maps at r = 7).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fullfield.ops import region_pwconv
from fullfield.ops.dispatch import one_of
from fullfield.ops.dynamic_pwconv import SIMILARITIES

__all__ = ["RegionPWConv"]

TYPICAL_WINDOW_PIXELS = 64


class RegionPWConv(nn.Module):
    """Region point-wise convolution, (B, C, H, W) -> (B, C, H, W).

    Args:
        dim: Channels C.
        region_size: r, see `fullfield.ops.region_pwconv`.
        heads: Groups of channels mixed among themselves; must divide `dim`.
        similarity: "cosine" or "inner".
        device: Where the parameter lives.
        dtype: Its dtype.

    Raises:
        ValueError: `heads` does not divide `dim`, or the similarity is unknown.
    """

    def __init__(
        self,
        dim: int,
        region_size: int = 7,
        heads: int = 1,
        similarity: str = "cosine",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"heads must divide the channels: {dim} channels, {heads} heads")
        self.dim = dim
        self.region_size = region_size
        self.heads = heads
        self.similarity = one_of("similarity", similarity, SIMILARITIES)
        self.scale = nn.Parameter(torch.empty(heads, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set s so that a channel weighs itself most at the start (see the file's head)."""
        start = math.log(self.dim / self.heads) + 2
        nn.init.constant_(self.scale, start if self.similarity == "cosine" else start / TYPICAL_WINDOW_PIXELS)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels of every sparse global window."""
        return region_pwconv(x, self.scale, region_size=self.region_size, heads=self.heads, similarity=self.similarity)

    def extra_repr(self) -> str:
        """Show what a reader of a printed model wants to know."""
        return f"{self.dim}, region_size={self.region_size}, heads={self.heads}, similarity={self.similarity!r}"
