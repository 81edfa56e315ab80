"""How a map is laid out in memory and cut into cells; operators give back the layout that they were given."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cells", "is_channels_last"]


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
