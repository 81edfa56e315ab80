"""A pre-norm residual branch, x + drop_path(gamma * f(norm(x))), the frame of every block on our skeleton."""

from __future__ import annotations

from typing import Any

from timm.layers import DropPath, LayerScale2d
from torch import Tensor, nn

from fullfield.layers.conv_norm import fold_norm_into_next_conv

__all__ = ["ResidualBranch"]


class ResidualBranch(nn.Module):
    """Add f(norm(x)) to x, (B, C, H, W) -> (B, C, H, W).

    Args:
        dim: Channels C.
        body: f, a module (B, C, H, W) -> (B, C, H, W).
        layer_scale: Start value of the per-channel factor gamma (LayerScale, CaiT), None for no factor.
        drop_path: Probability that a sample skips the branch in training (stochastic depth).
        device: Where the parameters live.
        dtype: Their dtype.
    """

    def __init__(
        self,
        dim: int,
        body: nn.Module,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm2d(dim, device=device, dtype=dtype)
        self.body = body
        self.gamma: nn.Module = nn.Identity()
        if layer_scale is not None:
            self.gamma = LayerScale2d(dim, layer_scale, device=device, dtype=dtype)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, apply the body, add."""
        return x + self.drop_path(self.gamma(self.body(self.norm(x))))  # type: ignore[no-any-return]

    def fuse(self) -> None:
        """Fold the norm into the body's first 1x1 convolution where it starts with one, in place."""
        first = getattr(self.body, "first_conv", None)
        if first is not None and isinstance(self.norm, nn.BatchNorm2d):
            fold_norm_into_next_conv(self.norm, first)
            self.norm = nn.Identity()
