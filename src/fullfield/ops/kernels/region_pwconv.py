"""The custom operator `fullfield::region_pwconv`: the Triton kernels as PyTorch sees them.

It has a fake kernel, an autograd formula and a FLOP formula, so that `torch.compile`, `torch.export`, gradient
checkpointing, DDP and the FLOP counter work. Triton itself is imported at the first call: without it, or without a
GPU, everything else in the package works, and forcing the path says why it cannot run.

The annotations here are objects and not text, because PyTorch reads the operator's schema from them.
"""

# no `from __future__ import annotations`: see above

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from fullfield.errors import ConfigError
from fullfield.ops.kernels.plan import Plan, plan, worth_it
from fullfield.ops.layout import is_channels_last

__all__ = ["VERIFIED_CAPABILITIES", "is_fastest", "region_pwconv_triton"]

HAS_TRITON = importlib.util.find_spec("triton") is not None  # found, not imported
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEAST_CAPABILITY = (8, 0)  # Ampere: bfloat16 and TF32 products
LARGEST_IMAGE = 2**31  # elements; offsets within an image are 32 bits wide

VERIFIED_CAPABILITIES: frozenset[tuple[int, int]] = frozenset()
"""CUDA compute capabilities on which `benchmarks/gpu.py` has shown the kernels to be right and fastest.

Only there does the rule choose them. Empty: they have been run in Triton's interpreter and compiled for sm_90, but no
GPU has run them yet. `path="triton"` or FULLFIELD_PATH_REGION_PWCONV=triton runs them on any GPU.
"""


def is_fastest(x: Tensor, rows: int, columns: int, heads: int, similarity: str) -> bool:
    """Whether the rule should run the kernels: a verified GPU, a dtype they know, and a plan that fills the GPU.

    Args:
        x: (B, C, H, W).
        rows: Windows down.
        columns: Windows across.
        heads: Groups of channels.
        similarity: "cosine" or "inner".
    """
    if not x.is_cuda or not VERIFIED_CAPABILITIES or _why_not(x) is not None:
        return False
    if _capability(x.device.index) not in VERIFIED_CAPABILITIES:
        return False
    windows = x.shape[0] * heads * rows * columns
    return worth_it(x.shape[1] // heads, _pixels(x, rows, columns), windows, cosine=similarity == "cosine")


def region_pwconv_triton(
    x: Tensor, scale: Tensor, rows: int, columns: int, heads: int, similarity: str, eps: float
) -> Tensor:
    """Mix channels inside every sparse global window by the Triton kernels.

    Under autocast the arithmetic is in autocast's dtype, as that of the other paths is.

    Args:
        x: (B, C, H, W), float32, bfloat16 or float16, any strides; what is neither NCHW nor channels_last is copied.
        scale: (heads,), clamped where that is wanted.
        rows: Windows down, min(r, H).
        columns: Windows across, min(r, W).
        heads: Groups of channels.
        similarity: "cosine" or "inner".
        eps: Added to the squared norm.

    Returns:
        (B, C, H, W), same dtype and memory format as `x`. It can be differentiated once.

    Raises:
        ConfigError: The kernels cannot run here, or have no plan for these sizes.
    """
    reason = _why_not(x)
    if reason is not None:
        raise ConfigError(f"path 'triton' of region_pwconv {reason}; leave path=None and the rule chooses another")
    cosine = similarity == "cosine"
    _plan(x, rows, columns, heads, cosine)
    kind = x.device.type
    half = torch.get_autocast_dtype(kind) if kind != "meta" and torch.is_autocast_enabled(kind) else x.dtype
    y, _ = torch.ops.fullfield.region_pwconv(x.to(half), scale.float(), rows, columns, heads, cosine, eps)
    return y.to(x.dtype)  # type: ignore[no-any-return]


def _why_not(x: Tensor) -> str | None:
    """Return what stands in the way of the kernels, as the end of a sentence, or None."""
    if x.dtype not in DTYPES:
        return f"knows float32, bfloat16 and float16, got {x.dtype}"
    if x.shape[1] * x.shape[2] * x.shape[3] >= LARGEST_IMAGE:
        return f"addresses images of fewer than 2**31 elements, got {tuple(x.shape[1:])}"
    if x.device.type == "meta" or (x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return None
    if x.device.type != "cuda":
        return f"needs a CUDA device, got a tensor on {x.device}"
    if not HAS_TRITON:
        return "needs the package triton, which comes with PyTorch for CUDA on Linux"
    if _capability(x.device.index) < LEAST_CAPABILITY:
        return f"needs compute capability 8.0, got {_capability(x.device.index)}"
    return None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _capability(device: int | None) -> tuple[int, int]:
    """Return the compute capability of a CUDA device; a constant of compiled graphs."""
    return torch.cuda.get_device_capability(device)


def _pixels(x: Tensor, rows: int, columns: int) -> int:
    """Return n, the pixels of the largest window."""
    return -(-x.shape[2] // rows) * -(-x.shape[3] // columns)


def _plan(x: Tensor, rows: int, columns: int, heads: int, cosine: bool) -> Plan:
    """Return the plan of these sizes.

    Raises:
        ConfigError: There is none.
    """
    # int: under a compiler with dynamic sizes, H and W become constants here, and the batch stays dynamic
    head_width, pixels = int(x.shape[1] // heads), int(_pixels(x, rows, columns))
    chosen = plan(head_width, pixels, cosine=cosine)
    if chosen is None:
        raise ConfigError(
            f"path 'triton' of region_pwconv has no kernel for windows of {pixels} pixels and heads of {head_width} "
            "channels (at most 64 channels, or at most 128 pixels); path 'bmm' serves them well"
        )
    return chosen


def _dense(x: Tensor) -> Tensor:
    """Return x itself where it is NCHW or channels_last without gaps, else a copy that is."""
    return x if is_channels_last(x) else x.contiguous()


def _like(x: Tensor) -> Tensor:
    """Return an empty tensor in the layout of `_dense(x)`."""
    layout = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _empty_kept(x: Tensor, rows: int, columns: int, heads: int, cosine: bool) -> Tensor:
    """Return what the forward pass keeps in float32, (windows, numbers): row sums for "rows", also y for "pixel"."""
    head_width = x.shape[1] // heads
    numbers = {"tile": 0, "rows": head_width, "pixel": 2 * head_width}[_plan(x, rows, columns, heads, cosine).kernel]
    windows = x.shape[0] * heads * rows * columns
    return torch.empty((windows, numbers), dtype=torch.float32, device=x.device)


@torch.library.custom_op("fullfield::region_pwconv", mutates_args=())
def _forward(
    x: Tensor, scale: Tensor, rows: int, columns: int, heads: int, cosine: bool, eps: float
) -> tuple[Tensor, Tensor]:
    from fullfield.ops.kernels.launch import Geometry, launch_forward

    y, kept = _like(x), _empty_kept(x, rows, columns, heads, cosine)
    if x.numel():
        cut = Geometry(rows, columns, heads, cosine, eps)
        launch_forward(_dense(x), scale.contiguous(), y, kept, cut, _plan(x, rows, columns, heads, cosine))
    return y, kept


@_forward.register_fake
def _(
    x: Tensor, _scale: Tensor, rows: int, columns: int, heads: int, cosine: bool, _eps: float
) -> tuple[Tensor, Tensor]:
    return _like(x), _empty_kept(x, rows, columns, heads, cosine)


@torch.library.custom_op("fullfield::region_pwconv_backward", mutates_args=())
def _backward(
    g: Tensor,
    x: Tensor,
    scale: Tensor,
    y: Tensor | None,
    kept: Tensor | None,
    rows: int,
    columns: int,
    heads: int,
    cosine: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    from fullfield.ops.kernels.launch import Geometry, launch_backward

    dx = _like(x)
    if not x.numel():
        return dx, torch.zeros_like(scale)
    layout = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    g = g.to(x.dtype).contiguous(memory_format=layout)
    cut = Geometry(rows, columns, heads, cosine, eps)
    chosen = _plan(x, rows, columns, heads, cosine)
    return dx, launch_backward(g, _dense(x), scale.contiguous(), y, kept, dx, cut, chosen)


@_backward.register_fake
def _(_g: Tensor, x: Tensor, scale: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _like(x), torch.empty_like(scale)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, scale, *cut = inputs
    y, kept = output
    ctx.cut = cut
    # "tile" makes everything again from x, so that training keeps nothing but x
    kernel = _plan(x, cut[0], cut[1], cut[2], cut[3]).kernel
    ctx.save_for_backward(x, scale, y if kernel == "rows" else None, None if kernel == "tile" else kept)
    ctx.mark_non_differentiable(kept)


def _differentiate(ctx: Any, g: Tensor, _g_kept: Tensor | None) -> tuple[Tensor | None, ...]:
    x, scale, y, kept = ctx.saved_tensors
    dx, ds = torch.ops.fullfield.region_pwconv_backward(g, x, scale, y, kept, *ctx.cut)
    return dx, ds, None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def _product_flops(shape: Any, rows: int, columns: int, heads: int) -> int:
    """FLOPs of one product of a (d, d) map and a (d, n) window, over all windows, padding included."""
    B, C, H, W = shape
    pixels = rows * columns * -(-H // rows) * -(-W // columns)
    return 2 * B * C * (C // heads) * pixels  # type: ignore[no-any-return]


@register_flop_formula(torch.ops.fullfield.region_pwconv)
def _forward_flops(x: Any, _scale: Any, rows: int, columns: int, heads: int, *_: Any, **__: Any) -> int:
    """Count x x^T and w x."""
    return 2 * _product_flops(x, rows, columns, heads)


@register_flop_formula(torch.ops.fullfield.region_pwconv_backward)
def _backward_flops(
    _g: Any, x: Any, _scale: Any, _y: Any, _kept: Any, rows: int, columns: int, heads: int, *_: Any, **__: Any
) -> int:
    """Count x x^T again, g x^T, x g^T, P^T g and Q x."""
    return 5 * _product_flops(x, rows, columns, heads)
