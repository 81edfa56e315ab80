"""What a model costs by count: parameters, MACs and FLOPs (see `models.flops`).

Nothing is computed for a model that is given by name: it is built on the meta device where it allows that.
`cost_report.py` has the same per module and kind of operator, with bytes; `cost_training.py` has training's memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fullfield.models.flops import count_flops
from fullfield.models.registry import create_model

__all__ = ["Cost", "build", "cost", "input_size"]


@dataclass(frozen=True)
class Cost:
    """Counts for one image."""

    name: str
    params: int
    """Learned numbers."""
    macs: int
    """Multiply-accumulates of a forward pass."""
    flops: int
    """Floating-point operations of the same: 2 x MACs."""
    input_size: tuple[int, int, int]
    """(channels, height, width) of the image."""


def cost(model: str | nn.Module, *, image_size: int | tuple[int, int] | None = None, **arguments: Any) -> Cost:
    """Count the parameters, MACs and FLOPs of a model.

    Args:
        model: A registered name, or a module (B, C, H, W) -> anything, which is left as it was.
        image_size: Side, or (height, width), in pixels; None for the model's own size, 224 for a module without one.
        arguments: Of `create_model`, for a name.

    Returns:
        Counts for one image in inference.

    Raises:
        ModelNotFoundError: No model has that name.
    """
    if isinstance(model, str):
        name, module = model, build(model, **arguments)
    else:
        name, module = type(model).__name__, model
    size = input_size(module, image_size)
    flops = count_flops(module, size)
    return Cost(name, sum(p.numel() for p in module.parameters()), flops // 2, flops, size)


def build(name: str, **arguments: Any) -> nn.Module:
    """Build a model without memory for its weights; a few of timm's cannot be, and are built for real.

    Args:
        name: A registered name.
        arguments: Of `create_model`.

    Raises:
        ModelNotFoundError: No model has that name.
    """
    try:
        with torch.device("meta"):
            return create_model(name, **arguments)
    except RuntimeError:  # a few of timm's compute with numbers of their weights
        return create_model(name, **arguments)


def input_size(module: nn.Module, image_size: int | tuple[int, int] | None = None) -> tuple[int, int, int]:
    """Return (channels, height, width) of an image for a module.

    Args:
        module: Of any library; timm's `pretrained_cfg` and `in_chans` are read where they are.
        image_size: Side, or (height, width), in pixels; None for the module's own, 224 where it has none.
    """
    own = (getattr(module, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
    channels = int(getattr(module, "in_chans", own[0]))
    if image_size is None:
        return channels, own[1], own[2]
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return channels, height, width
