"""FLOP formulas for what our operators call and PyTorch's own counter may not know.

`torch.utils.flop_counter.FlopCounterMode` counts the matrix products of every path by itself. Scaled-dot-
product attention on the CPU has its own operator, for which PyTorch 2.11 has no formula: it is added here,
and only where it is missing, so that an installed formula is never replaced. FLOPs are 2 x MACs.
"""

from __future__ import annotations

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


def register_missing_formulas() -> None:
    """Give PyTorch's counter the two formulas above where it has none."""
    for name, formula in {
        "_scaled_dot_product_flash_attention_for_cpu": attention_flops,
        "_scaled_dot_product_flash_attention_for_cpu_backward": attention_backward_flops,
    }.items():
        packet = getattr(torch.ops.aten, name)
        if packet not in flop_counter.flop_registry:
            flop_counter.register_flop_formula(packet)(formula)  # type: ignore[arg-type]
