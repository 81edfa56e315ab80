"""RaFFN, the token mixer of a RaCNN block: a feed-forward network that contains RPWConv and a 3x3.

Source: RaCNN (ICLR 2025 submission): RaFFN contains RPWConv, replaces the depthwise convolution as the block's
token mixer, and only 3x3 convolutions gather space. Ours: the layout,

    x + RPWConv(x)  ->  1x1 C -> 2C  ->  depthwise 3x3  ->  GELU  ->  1x1 2C -> C

with the inner residual as an argument. The mixer in RPWConv's place is given, so that the ablation puts a plain
depthwise 3x3 there.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["RaFFN"]


class RaFFN(nn.Module):
    """Region-aware feed-forward network, (B, C, H, W) -> (B, C, H, W).

    Args:
        dim: Channels C.
        mixer: Module (B, C, H, W) -> (B, C, H, W) that mixes before the first 1x1: `RegionPWConv`, or a depthwise
            convolution in its place.
        expansion: Width of the hidden layer over C.
        inner_residual: Add x to the mixer's output.
        device: Where the parameters live.
        dtype: Their dtype.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        expansion: int = 2,
        inner_residual: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        hidden = expansion * dim
        self.inner_residual = inner_residual
        self.mixer = mixer
        self.expand = nn.Conv2d(dim, hidden, 1, device=device, dtype=dtype)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, device=device, dtype=dtype)
        self.act = nn.GELU()
        self.project = nn.Conv2d(hidden, dim, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Mix channels by region, then gather a 3x3 neighbourhood."""
        mixed = self.mixer(x)
        x = x + mixed if self.inner_residual else mixed
        return self.project(self.act(self.depthwise(self.expand(x))))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Show what a reader of a printed model wants to know."""
        return f"inner_residual={self.inner_residual}"
