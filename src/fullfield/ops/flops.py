"""FLOP formulas for what our operators call and PyTorch's own counter may not know.

`torch.utils.flop_counter.FlopCounterMode` counts the matrix products of every path by itself. Scaled-dot-
product attention on the CPU has its own operator, for which PyTorch 2.11 has no formula, and no version has one for
the Fourier transform. Both are added here, and only where they are missing, so that an installed formula is never
replaced. FLOPs are 2 x MACs.

A Fourier transform has no MACs. By the convention of FFTW's benchmarks (Frigo and Johnson, "The Design and
Implementation of FFTW3", 2005) a complex transform of N points in all its dimensions counts as 5 N log2 N real
operations, a real one as half of that, whatever the algorithm does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import flop_counter

__all__ = ["register_missing_formulas"]


def attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """FLOPs of softmax(q k^T) v for shapes (B, heads, tokens, width): two matrix products."""
    batch, heads, tokens_q, width_q = query
    tokens_k, width_v = key[2], value[3]
    return 2 * batch * heads * tokens_q * tokens_k * (width_q + width_v)


def attention_backward_flops(
    _grad: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    """FLOPs of its backward pass: q k^T again, then the gradients of v, w, q and k."""
    batch, heads, tokens_q, width_q = query
    tokens_k, width_v = key[2], value[3]
    return 2 * batch * heads * tokens_q * tokens_k * (3 * width_q + 2 * width_v)


def fft_flops(size: Sequence[int], dims: Sequence[int]) -> int:
    """FLOPs of complex Fourier transforms over `dims` of an array of shape `size`, rounded to an even number."""
    points = math.prod(size[dim] for dim in dims)
    # even, so that MACs = FLOPs / 2 holds without a remainder
    return 2 * round(2.5 * math.prod(size) * math.log2(points)) if math.prod(size) else 0


def real_fft_flops(size: Sequence[int], dims: Sequence[int]) -> int:
    """FLOPs of real Fourier transforms, half of the complex ones; `size` is the shape of the real side."""
    return 2 * round(fft_flops(size, dims) / 4)


def _c2c_flops(x: Sequence[int], dims: Sequence[int], *_: Any, **__: Any) -> int:
    return fft_flops(x, dims)


def _r2c_flops(x: Sequence[int], dims: Sequence[int], *_: Any, **__: Any) -> int:
    return real_fft_flops(x, dims)


def _c2r_flops(_x: Sequence[int], dims: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    return real_fft_flops(out_shape, dims)


def register_missing_formulas() -> None:
    """Give PyTorch's counter the formulas above where it has none."""
    for name, formula in {
        "_scaled_dot_product_flash_attention_for_cpu": attention_flops,
        "_scaled_dot_product_flash_attention_for_cpu_backward": attention_backward_flops,
        "_fft_c2c": _c2c_flops,
        "_fft_r2c": _r2c_flops,
        "_fft_c2r": _c2r_flops,
    }.items():
        packet = getattr(torch.ops.aten, name)
        if packet not in flop_counter.flop_registry:
            flop_counter.register_flop_formula(packet)(formula)  # type: ignore[arg-type]
