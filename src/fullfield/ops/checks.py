"""What every region operator asks of its arguments, checked once at the door.

The checks read shapes and dtypes only, so they cost nothing beside the operators and hold on meta and fake
tensors too.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_map", "check_region_size", "check_scale"]


def check_map(x: Tensor, name: str = "x") -> None:
    """Refuse what is not a floating-point feature map.

    Raises:
        ValueError: Not (B, C, H, W), or H or W is zero.
        TypeError: Not a floating-point dtype.
    """
    if x.ndim != 4:
        raise ValueError(f"{name} must be a feature map (B, C, H, W), got shape {tuple(x.shape)}")
    if x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(f"{name} has no pixels: H and W must be at least 1, got shape {tuple(x.shape)}")
    check_floating(x, name)


def check_floating(x: Tensor, name: str) -> None:
    """Refuse integer, boolean and complex tensors.

    Raises:
        TypeError: Not a floating-point dtype.
    """
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}; convert it with .float()")


def check_region_size(region_size: int) -> None:
    """Refuse region sizes that cut no region.

    Raises:
        TypeError: Not an integer.
        ValueError: Smaller than 1.
    """
    if isinstance(region_size, bool) or not isinstance(region_size, int | torch.SymInt):
        raise TypeError(f"region_size must be an int, got {region_size!r}; one size a stage is set on the model")
    if region_size < 1:
        raise ValueError(f"region_size must be at least 1, got {region_size}")


def check_scale(scale: Tensor, channels: int, heads: int) -> None:
    """Refuse a number of heads that does not divide the channels, and scales that are not one a head.

    Raises:
        ValueError: Names the numbers that do not fit.
    """
    if heads < 1 or channels % heads:
        raise ValueError(f"heads must divide the channels: {channels} channels, {heads} heads")
    if scale.ndim != 1 or scale.shape[0] != heads:
        raise ValueError(f"scale must have shape ({heads},), one a head, got {tuple(scale.shape)}")
    check_floating(scale, "scale")
