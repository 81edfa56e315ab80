"""Dynamic point-wise convolution (Dynamic PWConv), a 1x1 convolution whose weights come from its own input.

Source: RaCNN (ICLR 2025 submission), as its reviews and rebuttals state it: for a map x of C rows of n pixels,

    w = softmax(s * x x^T / |x|^2)  in R^{C x C},  softmax over the last axis,      y = w x

The token is the channel; there are no weights but s. Ours, where the source is open: every row is divided by
its own norm, so that the similarity is the *cosine* that the text names; channels may be split into heads, so
that the softmax costs C*d elements and not C*C (`heads=1` is the literal operator). MACs: 2 * n * C * d, with
d = C / heads. It equals scaled-dot-product attention with channels as tokens, q = s*x_hat, k = x_hat, v = x.

Before changing anything: norms and the softmax are taken in float32 for half types, with a floor of 1e-6 on
the squared norm, because a dead channel divided by a tiny norm is NaN in float16.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fullfield.ops.blocked import mix_channels_blocked
from fullfield.ops.checks import check_floating, check_scale
from fullfield.ops.dispatch import forced_path, one_of
from fullfield.ops.layout import is_channels_last

__all__ = ["SIMILARITIES", "dynamic_pwconv", "mix_channels"]

SIMILARITIES = ("cosine", "inner")
EPS = 1e-6
MAX_SCALE = 60.0  # exp(60) and its reciprocal are still normal numbers in float32 and bfloat16

# Legend of shapes: N windows (any batch), G heads, d channels of a head, n pixels.


def dynamic_pwconv(
    x: Tensor, scale: Tensor, *, heads: int = 1, similarity: str = "cosine", path: str | None = None
) -> Tensor:
    """Mix channels by the softmax of their similarity over the whole map (RaCNN, Dynamic PWConv).

    Args:
        x: (B, C, *spatial), any floating dtype, any memory format.
        scale: (heads,), the factor s of the logits; clamped to [-60, 60] for the cosine.
        heads: Groups of consecutive channels that are mixed among themselves; 1 is the source's operator.
        similarity: "cosine" (source, rows of unit norm) or "inner" (s * x x^T as it stands).
        path: "blocked", "sdpa", "bmm", "reference", or None for the measured rule.

    Returns:
        (B, C, *spatial), same dtype and memory format as `x`.

    Raises:
        ValueError: Shapes, heads, similarity or path do not fit.
        TypeError: `x` or `scale` is not floating point.
    """
    if x.ndim < 3:
        raise ValueError(f"x must be (B, C, *spatial), got shape {tuple(x.shape)}")
    check_floating(x, "x")
    check_scale(scale, x.shape[1], heads)
    one_of("similarity", similarity, SIMILARITIES)
    path = forced_path("dynamic_pwconv", path) or fastest_path(x, heads, math.prod(x.shape[2:]))
    x_NGdn = x.reshape(x.shape[0], heads, x.shape[1] // heads, math.prod(x.shape[2:]))
    y = mix_channels(x_NGdn, scale, similarity, path).reshape(x.shape)
    return y.contiguous(memory_format=torch.channels_last) if is_channels_last(x) else y


def mix_channels(x_NGdn: Tensor, scale: Tensor, similarity: str, path: str) -> Tensor:
    """Apply the equation in this file's head to N independent windows.

    Args:
        x_NGdn: (N, heads, d, n), windows whose rows are channels.
        scale: (heads,).
        similarity: One of `SIMILARITIES`.
        path: "blocked", "sdpa", "bmm" or "reference".

    Returns:
        (N, heads, d, n), same dtype.
    """
    if x_NGdn.numel() == 0:
        return x_NGdn.clone()
    if path == "blocked":
        x_Mnd = x_NGdn.transpose(2, 3).flatten(0, 1)
        return mix_windows(x_Mnd, scale, similarity).view(x_NGdn.transpose(2, 3).shape).transpose(2, 3)
    q, k, v = _query_key_value(x_NGdn, scale, similarity)
    y = {"reference": _reference, "bmm": _bmm, "sdpa": _sdpa}[path](q, k, v)
    return y.to(x_NGdn.dtype)


def mix_windows(x_Mnd: Tensor, scale: Tensor, similarity: str) -> Tensor:
    """Apply the equation block by block; see `blocked.py`.

    Args:
        x_Mnd: (N * heads, n, d), windows whose rows are pixels, heads running fastest.
        scale: (heads,).
        similarity: One of `SIMILARITIES`.

    Returns:
        (N * heads, n, d), same dtype.
    """
    cosine = similarity == "cosine"
    scale = scale.clamp(-MAX_SCALE, MAX_SCALE) if cosine else scale
    scale_M = scale.repeat(x_Mnd.shape[0] // scale.shape[0])
    return mix_channels_blocked(x_Mnd, scale_M, normalise=cosine, eps=EPS)


def fastest_path(x: Tensor, heads: int, pixels: int) -> str:
    """Return the path that was fastest; `benchmarks/region_ops_cpu.py` measures it.

    Args:
        x: (B, C, ...), the input.
        heads: Of the operator.
        pixels: n, of one window.

    On a CPU, blocks of windows that fit the cache. Under a compiler, and on a GPU (where this has not been
    measured): SDPA, which never stores the (d, d) maps, unless the windows have many more pixels than the heads have
    channels, so that the maps are small beside x and plain matrix products win.
    """
    if torch.compiler.is_exporting():  # a branch on a dynamic size would pin it; runtimes run both alike
        return "bmm"
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return "blocked"
    return "bmm" if pixels > 2 * (x.shape[1] // heads) else "sdpa"


def _query_key_value(x: Tensor, scale: Tensor, similarity: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k, v of the attention that equals Dynamic PWConv: softmax(q k^T) v."""
    half = x.dtype in (torch.float16, torch.bfloat16)
    wide = x.float() if half else x
    s_G11 = scale.to(wide.dtype)[:, None, None]
    if similarity == "inner":  # inner products over n pixels leave float16's range: all in float32
        return wide * s_G11, wide, wide
    x_hat = wide * torch.rsqrt(wide.square().sum(dim=-1, keepdim=True) + EPS)
    s_G11 = s_G11.clamp(-MAX_SCALE, MAX_SCALE)
    return (x_hat * s_G11).to(x.dtype), x_hat.to(x.dtype), x


def _reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    w = _softmax(q @ k.transpose(-2, -1)).to(v.dtype)
    return w @ v


def _bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2))
    w = _softmax(logits).to(v.dtype)
    return torch.bmm(w, v.flatten(0, 1)).view(v.shape)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)


def _softmax(logits: Tensor) -> Tensor:
    half = logits.dtype in (torch.float16, torch.bfloat16)
    return torch.softmax(logits, dim=-1, dtype=torch.float32 if half else None)
