"""A residual branch whose body is added to the normalised map: x + drop_path(gamma * (n + f(n))), n = norm(x).

It frames the attention of VAN and MogaNet, whose official code writes the inner shortcut n + f(n) inside it. In eval
mode n = a*x + b per channel, so that the whole is (1 + gamma*a) * x + gamma*b + gamma * f(n): `fuse` folds the norm
into the first convolution of f and gamma into its last, and leaves one multiply-add of four passes over the map.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from timm.layers import DropPath, LayerScale2d
from torch import Tensor, nn

from fullfield.layers.conv_norm import fold_norm_into_next_conv, norm_as_affine

__all__ = ["ShortcutBranch"]


class _Body(Protocol):
    """What folding needs of f."""

    first_conv: nn.Conv2d
    """A dense 1x1 convolution, the only reader of f's input."""
    last_conv: nn.Conv2d
    """A convolution whose output is f's."""


class ShortcutBranch(nn.Module):
    """Add n + f(n) to x, n = norm(x), (B, C, H, W) -> (B, C, H, W).

    Args:
        dim: Channels C.
        body: f, a module (B, C, H, W) -> (B, C, H, W) with the attributes `first_conv`, a dense 1x1 convolution that
            alone reads its input, and `last_conv`, the convolution that makes its output.
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
        self.shortcut: nn.Parameter | None = None  # 1 + gamma*a, (C,), once fused

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, add the body's output, scale, add to x."""
        if self.shortcut is not None:
            return torch.addcmul(self.body(x), x, self.shortcut[:, None, None])
        x_norm = self.norm(x)
        return x + self.drop_path(self.gamma(x_norm + self.body(x_norm)))  # type: ignore[no-any-return]

    @torch.no_grad()
    def fuse(self) -> None:
        """Fold norm and gamma into the body's first and last convolution, in place; a second call does nothing."""
        if not isinstance(self.norm, nn.BatchNorm2d):
            return
        body = cast("_Body", self.body)
        a, b = norm_as_affine(self.norm)
        gamma = self.gamma.gamma.to(a.dtype) if isinstance(self.gamma, LayerScale2d) else torch.ones_like(a)
        fold_norm_into_next_conv(self.norm, body.first_conv)
        last = body.last_conv
        bias = b if last.bias is None else b + last.bias.to(a.dtype)
        last.weight.copy_(last.weight.to(a.dtype) * gamma[:, None, None, None])
        last.bias = nn.Parameter((gamma * bias).to(last.weight.dtype))
        self.shortcut = nn.Parameter((1 + gamma * a).to(last.weight.dtype))
        self.norm, self.gamma = nn.Identity(), nn.Identity()
