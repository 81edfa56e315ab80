"""Hold the input-dependent weights of RPWConv and Region Attention fixed while a gradient is taken.

RaCNN is global only through such weights: RPWConv is y = w(x) x with w from the whole lattice of a window, Region
Attention multiplies by gates that pooled it. With w and the gates taken as constants the outputs stay the same and
the gradient keeps the 3x3 convolutions alone, so that the difference of two fields shows what the weights carry.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from fullfield.layers import RegionAttention, RegionPWConv
from fullfield.ops.dynamic_pwconv import EPS, MAX_SCALE
from fullfield.ops.layout import cells

__all__ = ["fixed_region_weights", "has_fixed_weights"]

_FIXED: WeakSet[nn.Module] = WeakSet()


@contextmanager
def fixed_region_weights(model: nn.Module) -> Iterator[None]:
    """Take the dynamic weights of every RPWConv and the gates of every Region Attention as constants in the block.

    Outputs stay equal up to rounding; no gradient passes through weights or gates. Meant for `erf`:

        with fixed_region_weights(model):
            without = erf(model, images)

    Args:
        model: Any module; without such layers nothing changes.
    """
    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, RegionAttention | RegionPWConv):
                _FIXED.add(module)
                hooks.callback(_FIXED.discard, module)
            if isinstance(module, RegionPWConv):
                hooks.callback(module.register_forward_hook(_mix_with_constant_weights, prepend=True).remove)
            elif isinstance(module, RegionAttention):
                hooks.callback(module.gate.register_forward_hook(lambda _m, _i, gate: gate.detach()).remove)
        yield


def has_fixed_weights(module: nn.Module) -> bool:
    """Whether a module is inside a `fixed_region_weights` block: every unit then sees its own pixel alone."""
    return module in _FIXED


def _mix_with_constant_weights(module: RegionPWConv, inputs: Any, _output: Tensor) -> Tensor:
    """Compute RPWConv again, window by window, with softmax(s k k^T) out of autograd's sight."""
    (x,) = inputs
    B, C, H, W = x.shape
    rows, columns = cells(H, module.region_size), cells(W, module.region_size)
    y = torch.empty_like(x)
    for i in range(rows):
        for j in range(columns):
            window = x[:, :, i::rows, j::columns]
            v = window.reshape(B, module.heads, C // module.heads, -1)  # (B, heads, d, n)
            w = _weights(v.detach(), module.scale.detach(), module.similarity)
            y[:, :, i::rows, j::columns] = (w @ v).view(window.shape)
    return y


def _weights(x: Tensor, scale: Tensor, similarity: str) -> Tensor:
    """Return (B, heads, d, d), rows that sum to 1."""
    k, s = x, scale
    if similarity == "cosine":
        k = x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + EPS)
        s = scale.clamp(-MAX_SCALE, MAX_SCALE)
    return torch.softmax(s[:, None, None] * (k @ k.transpose(-2, -1)), dim=-1)
