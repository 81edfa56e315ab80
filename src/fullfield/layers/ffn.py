"""The plain feed-forward network (channel MLP): 1x1, GELU, 1x1. It gathers no space.

The counterpart that RaFFN and RaGLU replace in RaCNN's ablation ("vanilla PWConv" in its text).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["FFN"]


class FFN(nn.Module):
    """Channel MLP on a map, (B, C, H, W) -> (B, C, H, W).

    Args:
        dim: Channels C.
        expansion: Width of the hidden layer over C; 4 is the field's habit.
        device: Where the parameters live.
        dtype: Their dtype.
    """

    def __init__(self, dim: int, expansion: int = 4, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.expand = nn.Conv2d(dim, expansion * dim, 1, device=device, dtype=dtype)
        self.act = nn.GELU()
        self.project = nn.Conv2d(expansion * dim, dim, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Expand, activate, project."""
        return self.project(self.act(self.expand(x)))  # type: ignore[no-any-return]

    @property
    def first_conv(self) -> nn.Conv2d:
        """The 1x1 convolution that may take over the norm before this layer."""
        return self.expand
