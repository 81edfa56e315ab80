"""The memory layout of a map: operators give back the layout that they were given."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["is_channels_last"]


def is_channels_last(x: Tensor) -> bool:
    """Whether a 4-D tensor is laid out NHWC, and not (also) NCHW as maps of one pixel or one channel are."""
    return (
        x.ndim == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous(memory_format=torch.contiguous_format)
    )
