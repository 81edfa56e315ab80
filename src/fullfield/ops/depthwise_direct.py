"""Depthwise convolution by PyTorch's own CPU kernels, called so that they stay on their fast side.

oneDNN has two good float32 and bfloat16 kernels: one for NCHW that needs a left padding of at most 6 pixels, and
one for channels_last that is fast from a kernel width of 14. Outside of these PyTorch is up to 25 times slower, and
its gradient of the weight is slow at every size. So, exactly in real arithmetic:

- NCHW: longer padding is written into the map, and the kernel is given none.
- channels_last: kernels 11 to 13 wide get columns of zeros up to 15.
- Gradient of the input at stride 1: the forward convolution with the turned kernel (`transpose`).
- Gradient of the weight: dw[i] = sum_bh g[b, h] x[b, s*h + d*i - p] is a convolution of x with g as its kernel, in
  which stride and dilation change places: B*C groups in NCHW, one sample after the other in channels_last.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fullfield.ops.depthwise_shape import DepthwiseShape, transpose

__all__ = [
    "forward_channels_last",
    "forward_native",
    "forward_nchw",
    "grad_input_channels_last",
    "grad_input_native",
    "grad_input_nchw",
    "grad_weight_channels_last",
    "grad_weight_native",
    "grad_weight_nchw",
]

MOST_PADDING = 6  # of oneDNN's NCHW kernel, and of its channels_last kernel with a dilation
WIDENED = range(11, 14)  # kernel widths that channels_last runs faster at 15


def forward_native(x: Tensor, weight: Tensor, shape: DepthwiseShape) -> Tensor:
    """Convolve as `F.conv2d` does, (B, C, H, W) -> (B, C, H', W')."""
    return F.conv2d(x, weight, None, shape.stride, shape.padding, shape.dilation, shape.channels)


def forward_nchw(x: Tensor, weight: Tensor, shape: DepthwiseShape) -> Tensor:
    """Convolve in NCHW, (B, C, H, W) -> (B, C, H', W'), whatever the layout of `x`."""
    x, padding = _pad_width(x.contiguous(), shape.padding)
    return F.conv2d(x, weight, None, shape.stride, padding, shape.dilation, shape.channels)


def forward_channels_last(x: Tensor, weight: Tensor, shape: DepthwiseShape) -> Tensor:
    """Convolve in channels_last, (B, C, H, W) -> (B, C, H', W'), whatever the layout of `x`."""
    x, padding = x.contiguous(memory_format=torch.channels_last), shape.padding
    if shape.dilation > 1:
        x, padding = _pad_width(x, padding)
    elif shape.kernel[1] in WIDENED and shape.stride == 1:
        columns = (16 - shape.kernel[1]) // 2
        weight, padding = F.pad(weight, (columns, columns)), (padding[0], padding[1] + columns)
    return F.conv2d(x, weight, None, shape.stride, padding, shape.dilation, shape.channels)


def grad_input_native(g: Tensor, weight: Tensor, shape: DepthwiseShape) -> Tensor:
    """Return the input's gradient as PyTorch computes it, (B, C, H', W') -> (B, C, H, W)."""
    x = g.new_empty((1,)).expand(shape.batch, shape.channels, *shape.map_size)  # only its shape is read
    return _backward(g, x, weight, shape, (True, False, False))[0]


def grad_input_nchw(g: Tensor, weight: Tensor, shape: DepthwiseShape) -> Tensor:
    """Return the input's gradient, (B, C, H, W), computed in NCHW; with a stride PyTorch's own is fast."""
    if shape.stride > 1:
        return grad_input_native(g.contiguous(), weight, shape)
    return forward_nchw(*transpose(g, weight, shape))


def grad_input_channels_last(g: Tensor, weight: Tensor, shape: DepthwiseShape) -> Tensor:
    """Return the input's gradient, (B, C, H, W), computed in channels_last."""
    if shape.stride > 1:
        return grad_input_native(g.contiguous(memory_format=torch.channels_last), weight, shape)
    return forward_channels_last(*transpose(g, weight, shape))


def grad_weight_native(x: Tensor, g: Tensor, shape: DepthwiseShape) -> Tensor:
    """Return the weight's gradient as PyTorch computes it, (C, 1, KH, KW)."""
    weight = x.new_empty((1,)).expand(shape.channels, 1, *shape.kernel)  # only its shape is read
    return _backward(g, x, weight, shape, (False, True, False))[1]


def grad_weight_nchw(x: Tensor, g: Tensor, shape: DepthwiseShape) -> Tensor:
    """Return the weight's gradient, (C, 1, KH, KW): x convolved with g, every sample and channel a group."""
    groups = shape.batch * shape.channels
    x, padding = _pad_width(x.contiguous().view(1, groups, *shape.map_size), shape.padding)
    kernel = g.contiguous().view(groups, 1, *shape.output_size)
    dw = F.conv2d(x, kernel, None, shape.dilation, padding, shape.stride, groups)
    # With a stride the last pixels of x may meet no output, and the convolution is larger than the kernel.
    dw = dw[:, :, : shape.kernel[0], : shape.kernel[1]]
    return dw.reshape(shape.batch, shape.channels, 1, *shape.kernel).sum(0)


def grad_weight_channels_last(x: Tensor, g: Tensor, shape: DepthwiseShape) -> Tensor:
    """Return the weight's gradient, (C, 1, KH, KW): each sample of x convolved with that of g, and summed."""
    x, padding = x.contiguous(memory_format=torch.channels_last), shape.padding
    g = g.contiguous(memory_format=torch.channels_last)
    if shape.stride > 1 or shape.dilation > 1:
        x, padding = _pad_width(x, padding)
    dw = torch.zeros(1, shape.channels, *shape.kernel, dtype=torch.promote_types(x.dtype, torch.float32))
    for sample in range(shape.batch):
        kernel = g[sample].unsqueeze(1)  # (C, 1, H', W')
        one = F.conv2d(x[sample : sample + 1], kernel, None, shape.dilation, padding, shape.stride, shape.channels)
        dw += one[:, :, : shape.kernel[0], : shape.kernel[1]]
    return dw.transpose(0, 1).to(x.dtype)


def _pad_width(x: Tensor, padding: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """Write a width of padding that oneDNN's fast kernel refuses into the map; return the padding still to do."""
    height, width = padding
    return (F.pad(x, (width, width)), (height, 0)) if width > MOST_PADDING else (x, padding)


def _backward(
    g: Tensor, x: Tensor, weight: Tensor, shape: DepthwiseShape, mask: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    stride, dilation = (shape.stride,) * 2, (shape.dilation,) * 2
    return torch.ops.aten.convolution_backward(  # type: ignore[no-any-return]
        g, x, weight, None, stride, shape.padding, dilation, False, (0, 0), shape.channels, mask
    )
