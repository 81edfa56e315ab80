"""Depthwise 2-D convolution for kernels from 3 to 51 and for strips."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["depthwise_conv2d"]


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: str | int | tuple[int, int] = "same",
    path: str | None = None,
) -> Tensor:
    """Convolve every channel with its own kernel."""
    del path
    if padding == "same":
        padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    return F.conv2d(x, weight, bias, stride, padding, groups=x.shape[1])
