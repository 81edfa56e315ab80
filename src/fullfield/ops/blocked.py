"""Dynamic PWConv of many windows on a CPU, a cache-sized block of windows at a time, forward and backward.

With narrow heads the (d, d) maps of all windows together are many times larger than the input (16 times at the
third stage of RaCNN at 224), and passes over them in memory are most of the time. Here each block's maps are made,
used and dropped while they are in the cache; the backward pass makes them again, as FlashAttention does (Dao et
al., 2022), so that training keeps no map either. Pixels run down and channels across, so that every pass is over
contiguous channels. The arithmetic is float32 for half types.

Shapes: M windows times heads, n pixels, d channels. Backward, with w = softmax(s * k^T k) over its last axis,
y = x w^T, g the gradient of y, delta_i = sum_n g_i y_i, and L_ij = w_ij ((g^T x)_ij - delta_i):
dx = g w + s * inv * (z - k * sum_n(k * z)),  z = k (L + L^T),  ds = 1/2 sum(k * z).
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

__all__ = ["mix_channels_blocked"]

BLOCK_ELEMENTS = 2**18  # of float32: 1 MiB, about a core's second-level cache


def mix_channels_blocked(x_Mnd: Tensor, scale_M: Tensor, *, normalise: bool, eps: float) -> Tensor:
    """Mix the channels of M independent windows.

    Args:
        x_Mnd: (M, n, d), any floating dtype.
        scale_M: (M,), the factor of each window's logits.
        normalise: Whether similarities are between rows of unit norm (cosine) or as they stand (inner product).
        eps: Added to the squared norm.

    Returns:
        (M, n, d), same dtype. It can be differentiated once.
    """
    wide = torch.float64 if x_Mnd.dtype == torch.float64 else torch.float32
    autocast = torch.is_autocast_enabled(x_Mnd.device.type) if x_Mnd.device.type != "meta" else False
    with torch.autocast(x_Mnd.device.type, enabled=False) if autocast else nullcontext():
        y = _BlockedMix.apply(x_Mnd.to(wide), scale_M.to(wide), normalise, eps)
    return y.to(x_Mnd.dtype)  # type: ignore[no-any-return]


def _block(n: int, d: int) -> int:
    """Windows whose maps and pixels fit the cache together."""
    return max(1, BLOCK_ELEMENTS // (d * (d + n)))


def _rows(x: Tensor, normalise: bool, eps: float) -> tuple[Tensor, Tensor | None]:
    """Return k, the rows to compare, and what they were multiplied by."""
    if not normalise:
        return x, None
    inverse_norm = torch.rsqrt(x.square().sum(dim=1, keepdim=True) + eps)  # (m, 1, d)
    return x * inverse_norm, inverse_norm


def _weights(k: Tensor, scale: Tensor) -> Tensor:
    """Return w = softmax(s * k^T k), (m, d, d)."""
    return torch.softmax(torch.bmm((k * scale[:, None, None]).transpose(1, 2), k), dim=-1)


class _BlockedMix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, normalise: bool, eps: float) -> Tensor:
        y = torch.empty_like(x)
        step = _block(x.shape[1], x.shape[2])
        for start in range(0, x.shape[0], step):
            block = slice(start, start + step)
            k, _ = _rows(x[block], normalise, eps)
            torch.bmm(x[block], _weights(k, scale[block]).transpose(1, 2), out=y[block])
        ctx.save_for_backward(x, scale, y)
        ctx.normalise, ctx.eps = normalise, eps
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, g: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, scale, y = ctx.saved_tensors  # type: ignore[attr-defined]
        normalise, eps = ctx.normalise, ctx.eps  # type: ignore[attr-defined]
        dx, dscale = torch.empty_like(x), torch.empty_like(scale)
        step = _block(x.shape[1], x.shape[2])
        for start in range(0, x.shape[0], step):
            block = slice(start, start + step)
            dx[block], dscale[block] = _block_backward(g[block], x[block], y[block], scale[block], normalise, eps)
        return dx, dscale, None, None


def _block_backward(
    g: Tensor, x: Tensor, y: Tensor, scale: Tensor, normalise: bool, eps: float
) -> tuple[Tensor, Tensor]:
    k, inverse_norm = _rows(x, normalise, eps)
    w = _weights(k, scale)
    dx = torch.bmm(g, w)
    delta = (g * y).sum(dim=1)[:, :, None]  # (m, d, 1)
    dlogits = torch.bmm(g.transpose(1, 2), x).sub_(delta).mul_(w)  # L
    z = torch.bmm(k, dlogits + dlogits.transpose(1, 2))  # (m, n, d)
    kz = k * z
    dscale = 0.5 * kz.sum(dim=(1, 2))
    if inverse_norm is not None:
        z = (z - k * kz.sum(dim=1, keepdim=True)) * inverse_norm
    return dx.addcmul_(z, scale[:, None, None].expand_as(z)), dscale
