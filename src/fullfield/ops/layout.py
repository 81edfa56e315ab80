"""How a map is laid out in memory and cut into cells; operators give back the layout that they were given."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["cells", "exported_cells", "is_channels_last", "padded"]


def is_channels_last(x: Tensor) -> bool:
    """Whether a 4-D tensor is laid out NHWC, and not (also) NCHW as maps of one pixel or one channel are."""
    return (
        x.ndim == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous(memory_format=torch.contiguous_format)
    )


def cells(size: int, region_size: int) -> int:
    """Return min(region_size, size): how many phases modulo `region_size` a side of `size` pixels has.

    Written as a comparison and not as `min`, because under export a comparison that holds for the whole range of a
    dynamic size leaves a plain number, while `min` leaves an expression that later shapes can't be proved equal to.
    """
    return region_size if size >= region_size else size


def exported_cells(size: int | torch.SymInt, region_size: int) -> tuple[int, Any]:
    """Return (phases, regions) of a side without a branch on a free size, so that one exported graph holds for every.

    Of a free size the phases stay `region_size` on maps smaller than it, and there are at least two regions (a size of
    1 would be fixed in the graph). What that adds is zeros, which change neither sums nor products.

    Args:
        size: Of the side, pixels: a number where it is known, a symbol where it is free.
        region_size: r.
    """
    if isinstance(size, int):
        phases = cells(size, region_size)
        return phases, -(-size // phases)
    return region_size, torch.sym_max(2, (size + region_size - 1) // region_size)


def padded(x: Tensor, right: int | torch.SymInt, below: int | torch.SymInt) -> Tensor:
    """Add zeros to a map at the right and below, or cut off where the amounts are negative.

    Args:
        x: (..., H, W).
        right: Columns; nothing is done where both amounts are known to be 0.
        below: Rows.
    """
    if isinstance(right, int) and isinstance(below, int) and right == below == 0:
        return x
    return F.pad(x, (0, right, 0, below))  # type: ignore[arg-type] # a symbol will do
