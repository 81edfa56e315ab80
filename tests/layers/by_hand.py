"""Convolutions written as sums of shifted products, which share no code with `torch.nn.functional.conv2d`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def depthwise_by_hand(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """Return the depthwise convolution of `layer`, zeros beyond the border, as a sum over its taps."""
    height, width = x.shape[2:]
    rows, columns = layer.kernel_size
    dilation = layer.dilation[0]
    y = torch.zeros_like(x) + (layer.bias[:, None, None] if layer.bias is not None else 0)
    for i in range(rows):
        for j in range(columns):
            down, right = dilation * (i - rows // 2), dilation * (j - columns // 2)
            shifted = torch.zeros_like(x)
            inner = slice(max(0, -down), max(0, min(height, height - down)))
            across = slice(max(0, -right), max(0, min(width, width - right)))
            there = slice(max(0, down), max(0, min(height, height + down)))
            aside = slice(max(0, right), max(0, min(width, width + right)))
            shifted[:, :, inner, across] = x[:, :, there, aside]
            y = y + shifted * layer.weight[:, 0, i, j][:, None, None]
    return y


def pointwise_by_hand(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """Return the 1x1 convolution of `layer` as one matrix product a pixel."""
    y = torch.einsum("oi,bihw->bohw", layer.weight[:, :, 0, 0], x)
    return y if layer.bias is None else y + layer.bias[:, None, None]
