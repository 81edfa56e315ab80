"""The depthwise convolution and its two gradients as three custom operators that are each other's gradients.

Forward F(x, k), gradient of the input I(g, k) and gradient of the kernel D(x, g) are the three partial derivatives of
one trilinear form: <g, F(x, k)> = <I(g, k), x> = <D(x, g), k>. So the gradients of each are the other two, and all
can be differentiated any number of times. As custom operators they are one call for `FlopCounterMode`, which counts
the MACs of the direct convolution whatever path runs, once for each direction. (PyTorch's own formula for the
weight's gradient of a grouped convolution is C times that.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from fullfield.ops.depthwise_direct import (
    forward_channels_last,
    forward_native,
    forward_nchw,
    grad_input_channels_last,
    grad_input_native,
    grad_input_nchw,
    grad_weight_channels_last,
    grad_weight_native,
    grad_weight_nchw,
)
from fullfield.ops.depthwise_fft import forward_fft, grad_input_fft, grad_weight_fft
from fullfield.ops.depthwise_rule import fastest_path
from fullfield.ops.depthwise_shape import DepthwiseShape, shape_of
from fullfield.ops.depthwise_toeplitz import forward_toeplitz, grad_input_toeplitz, grad_weight_toeplitz
from fullfield.ops.layout import is_channels_last

__all__ = ["convolve", "grad_input", "grad_weight"]

Path = Callable[[Tensor, Tensor, DepthwiseShape], Tensor]

FORWARD: dict[str, Path] = {
    "native": forward_native,
    "nchw": forward_nchw,
    "channels_last": forward_channels_last,
    "fft": forward_fft,
    "toeplitz": forward_toeplitz,
}
GRAD_INPUT: dict[str, Path] = {
    "native": grad_input_native,
    "nchw": grad_input_nchw,
    "channels_last": grad_input_channels_last,
    "fft": grad_input_fft,
    "toeplitz": grad_input_toeplitz,
}
GRAD_WEIGHT: dict[str, Path] = {
    "native": grad_weight_native,
    "nchw": grad_weight_nchw,
    "channels_last": grad_weight_channels_last,
    "fft": grad_weight_fft,
    "toeplitz": grad_weight_toeplitz,
}


@torch.library.custom_op("fullfield::depthwise_conv2d", mutates_args=())
def convolve(x: Tensor, weight: Tensor, stride: int, padding: Sequence[int], dilation: int, path: str) -> Tensor:
    """Convolve every channel with its own kernel.

    Args:
        x: (B, C, H, W).
        weight: (C, 1, KH, KW), same dtype.
        stride: s.
        padding: (above and below, left and right), in pixels.
        dilation: d.
        path: One of `PATHS["depthwise_conv2d"]`, or "" for the measured rule; the gradients take it too.

    Returns:
        (B, C, H', W') in the memory format of `x`.
    """
    whole = _shape(x, weight.shape[2:], stride, padding, dilation)
    shape, channels_last = whole.cropped(), is_channels_last(x)
    path = path or fastest_path("forward", shape, x.dtype, channels_last)
    return _laid_out(FORWARD[path if x.numel() else "native"](x, whole.crop(weight), shape), channels_last)


@torch.library.custom_op("fullfield::depthwise_grad_input", mutates_args=())
def grad_input(
    g: Tensor,
    weight: Tensor,
    map_size: Sequence[int],
    channels_last: bool,
    stride: int,
    padding: Sequence[int],
    dilation: int,
    path: str,
) -> Tensor:
    """Return the input's gradient, (B, C, H, W).

    Args:
        g: (B, C, H', W'), the output's gradient.
        weight: As in `convolve`, like all that follows.
        map_size: H, W.
        channels_last: Whether the input, and so its gradient, is laid out NHWC.
        stride: s.
        padding: Pixels.
        dilation: d.
        path: A path, or "".
    """
    whole = _shape(g, weight.shape[2:], stride, padding, dilation, map_size)
    shape = whole.cropped()
    path = path or fastest_path("grad_input", shape, g.dtype, channels_last)
    return _laid_out(GRAD_INPUT[path if g.numel() else "native"](g, whole.crop(weight), shape), channels_last)


@torch.library.custom_op("fullfield::depthwise_grad_weight", mutates_args=())
def grad_weight(
    x: Tensor, g: Tensor, kernel: Sequence[int], stride: int, padding: Sequence[int], dilation: int, path: str
) -> Tensor:
    """Return the kernels' gradient, (C, 1, KH, KW).

    Args:
        x: As in `convolve`, like all that follows.
        g: (B, C, H', W'), the output's gradient.
        kernel: KH, KW.
        stride: s.
        padding: Pixels.
        dilation: d.
        path: A path, or "".
    """
    whole = _shape(x, kernel, stride, padding, dilation)
    shape = whole.cropped()
    path = path or fastest_path("grad_weight", shape, x.dtype, is_channels_last(x))
    return whole.uncrop(GRAD_WEIGHT[path if x.numel() else "native"](x, g, shape)).contiguous()


def _shape(
    x: Tensor,
    kernel: Sequence[int],
    stride: int,
    padding: Sequence[int],
    dilation: int,
    map_size: Sequence[int] | None = None,
) -> DepthwiseShape:
    shape = shape_of(x, (kernel[0], kernel[1]), stride, (padding[0], padding[1]), dilation)
    return shape if map_size is None else shape._replace(map_size=(map_size[0], map_size[1]))


def _laid_out(y: Tensor, channels_last: bool) -> Tensor:
    return y.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@convolve.register_fake
def _(x: Tensor, weight: Tensor, stride: int, padding: Sequence[int], dilation: int, _path: str) -> Tensor:
    y = forward_native(x, weight, _shape(x, weight.shape[2:], stride, padding, dilation))
    return _laid_out(y, is_channels_last(x))


@grad_input.register_fake
def _(g: Tensor, _weight: Tensor, map_size: Sequence[int], channels_last: bool, *_: Any) -> Tensor:
    return _laid_out(g.new_empty(g.shape[0], g.shape[1], *map_size), channels_last)


@grad_weight.register_fake
def _(x: Tensor, _g: Tensor, kernel: Sequence[int], *_: Any) -> Tensor:
    return x.new_empty(x.shape[1], 1, *kernel)


def _save_convolve(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 - torch names it
    x, weight, *ctx.geometry = inputs
    ctx.input = x.shape[2:], is_channels_last(x)
    ctx.kernel = weight.shape[2:]
    # A frozen kernel needs no map for its gradient: attribution of a whole net then keeps none.
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)


def _backward_convolve(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    x, weight = ctx.saved_tensors
    dx = grad_input(g, weight, *ctx.input, *ctx.geometry) if weight is not None else None
    dk = grad_weight(x, g, ctx.kernel, *ctx.geometry) if x is not None else None
    return dx, dk, None, None, None, None


def _save_grad_input(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 - torch names it
    g, weight, _, _, *ctx.geometry = inputs
    ctx.kernel = weight.shape[2:]
    ctx.save_for_backward(g if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)


def _backward_grad_input(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    g, weight = ctx.saved_tensors
    dg = convolve(upstream, weight, *ctx.geometry) if weight is not None else None
    dk = grad_weight(upstream, g, ctx.kernel, *ctx.geometry) if g is not None else None
    return dg, dk, None, None, None, None, None, None


def _save_grad_weight(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 - torch names it
    x, g, _, *ctx.geometry = inputs
    ctx.input = x.shape[2:], is_channels_last(x)
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, g if ctx.needs_input_grad[0] else None)


def _backward_grad_weight(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    x, g = ctx.saved_tensors
    dx = grad_input(g, upstream, *ctx.input, *ctx.geometry) if g is not None else None
    dg = convolve(x, upstream, *ctx.geometry) if x is not None else None
    return dx, dg, None, None, None, None, None


convolve.register_autograd(_backward_convolve, setup_context=_save_convolve)
grad_input.register_autograd(_backward_grad_input, setup_context=_save_grad_input)
grad_weight.register_autograd(_backward_grad_weight, setup_context=_save_grad_weight)


@register_flop_formula(torch.ops.fullfield.depthwise_conv2d)
def _convolve_flops(_x: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[2:])


@register_flop_formula(torch.ops.fullfield.depthwise_grad_input)
def _grad_input_flops(g: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(g) * math.prod(weight[2:])


@register_flop_formula(torch.ops.fullfield.depthwise_grad_weight)
def _grad_weight_flops(_x: Sequence[int], g: Sequence[int], kernel: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(g) * math.prod(kernel)
