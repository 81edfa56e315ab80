"""Counting as most published "FLOPs" of nets are counted (OpenMMLab's counter, ptflops): MACs and some additions.

Our own count is multiply-accumulates alone. Published figures of VAN and MogaNet also hold one addition an output
for every bias and two operations an element for every norm, 0.5 to 2.5 % of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor, nn

import fullfield
from fullfield.measure import cost


@dataclass(frozen=True)
class Counts:
    """What one variant costs at 224 pixels."""

    params: int
    macs: int
    flops: int
    """As published: MACs, plus an addition a bias and two operations an element of a norm."""


@cache
def counts(name: str) -> Counts:
    """Count a registered model on the meta device."""
    model = fullfield.create_model(name, device="meta")
    extra = 0

    def count(module: nn.Module, args: Any, y: Tensor) -> None:
        nonlocal extra
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            extra += 2 * y.numel()
        elif module.bias is not None:
            extra += y.numel()

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    counted = cost(model)
    return Counts(counted.params, counted.macs, counted.macs + extra)
