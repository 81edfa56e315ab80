"""Region Attention (RA): a squeeze-and-excite with one gate for each sparse global window and channel.

Source: RaCNN (ICLR 2025 submission): mean of every window -> r x r map; 1x1 convolution C -> R, activation, 1x1
convolution R -> C; nearest-neighbour upsampling; product. Ours, where the source is open: R = C / 16, GELU
between, sigmoid last, and the alternative placement "modulo" (see `ops.region_gate`). With r = 1 it is exactly a
squeeze-and-excite.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fullfield.ops import region_gate, region_pool
from fullfield.ops.dispatch import one_of
from fullfield.ops.region_gate import PLACEMENTS

__all__ = ["RegionAttention"]


class RegionAttention(nn.Module):
    """Gate a map by its regions, (B, C, H, W) -> (B, C, H, W).

    Args:
        dim: Channels C.
        region_size: r, see `fullfield.ops.region_pool`.
        reduction: C / R, the narrowing between the two 1x1 convolutions.
        placement: "nearest" (source) or "modulo".
        device: Where the parameters live.
        dtype: Their dtype.

    Raises:
        ValueError: The placement is unknown.
    """

    def __init__(
        self,
        dim: int,
        region_size: int = 7,
        reduction: int = 16,
        placement: str = "nearest",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        hidden = max(1, dim // reduction)
        self.region_size = region_size
        self.placement = one_of("placement", placement, PLACEMENTS)
        self.reduce = nn.Conv2d(dim, hidden, 1, device=device, dtype=dtype)
        self.act = nn.GELU()
        self.expand = nn.Conv2d(hidden, dim, 1, device=device, dtype=dtype)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Pool the windows, compute their gates, multiply."""
        cells = region_pool(x, self.region_size)  # (B, C, min(r, H), min(r, W))
        return region_gate(x, self.gate(self.expand(self.act(self.reduce(cells)))), placement=self.placement)

    def extra_repr(self) -> str:
        """Show what a reader of a printed model wants to know."""
        return f"region_size={self.region_size}, placement={self.placement!r}"
