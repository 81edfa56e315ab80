"""Depthwise 2-D convolution for kernels of 3 to 51 pixels and for strips, forward and backward.

y[b, c, h, w] = sum_ij k[c, i, j] x[b, c, s*h + d*i - p, s*w + d*j - p] with stride s, dilation d, padding p.
PyTorch's CPU kernels become up to 25 times slower at a kernel width of 15, and their gradients of large kernels are
slower still. Here each direction takes the fastest of five paths, by the rule in `depthwise_rule.py`:

- native: `F.conv2d` and its gradients, as they are;
- nchw, channels_last: the same CPU kernels, called so that they stay fast (`depthwise_direct.py`);
- fft: circular correlation (`depthwise_fft.py`);
- toeplitz: one matrix a channel, for small maps (`depthwise_toeplitz.py`).

All but "native" drop the taps that meet only padding, and round differently: relative to the norm of a map the
difference is about 1e-6 in float32. They can be differentiated any number of times by reverse mode; forward-mode
gradients take PyTorch's own path.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from fullfield.errors import ConfigError
from fullfield.ops.checks import check_floating, check_map
from fullfield.ops.depthwise_rule import fastest_path
from fullfield.ops.depthwise_shape import DepthwiseShape, shape_of
from fullfield.ops.depthwise_toeplitz import check_toeplitz
from fullfield.ops.depthwise_trilinear import convolve
from fullfield.ops.dispatch import forced_path
from fullfield.ops.layout import is_channels_last

__all__ = ["depthwise_conv2d"]


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: str | int | tuple[int, int] = "same",
    path: str | None = None,
    dilation: int = 1,
) -> Tensor:
    """Convolve every channel with its own kernel.

    Args:
        x: (B, C, H, W), any floating dtype, NCHW or channels_last; B may be zero.
        weight: (C, 1, KH, KW), same dtype; under autocast both are cast to its dtype.
        bias: (C,), or None.
        stride: s, pixels between outputs.
        padding: "same" for d*(k-1)/2 pixels of zeros on every side (odd kernels), which gives ceil(H/s) rows; or
            pixels on every side, or (above and below, left and right).
        path: One of `PATHS["depthwise_conv2d"]` for all directions, or None for the measured rule. On other devices
            than the CPU and under `torch.compile` the rule is PyTorch's own path; export and tracing always take it.
        dilation: d, pixels between taps.

    Returns:
        (B, C, H', W'), dtype and memory format of `x`.

    Raises:
        ValueError: Shapes do not fit, or an even kernel with "same".
        TypeError: `x` or `weight` is not floating point, or they differ in dtype.
        ConfigError: The path is unknown, is "toeplitz" and the map is too large for it, or is none of PyTorch's own
            under forward-mode differentiation.
    """
    check_map(x)
    _check_arguments(x, weight, stride, dilation)
    kernel = (weight.shape[2], weight.shape[3])
    pads = _pads(kernel, padding, dilation)
    forced = forced_path("depthwise_conv2d", path)
    if _is_graph() or forced == "native" or (forced is None and not _is_measured(x, weight)):
        return F.conv2d(x, weight, bias, stride, pads, dilation, x.shape[1])
    if _in_forward_mode():
        raise ConfigError("forward-mode gradients of depthwise_conv2d need path='native' or path=None")
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if x.dtype != weight.dtype:
        raise TypeError(f"x and weight must have one dtype, got {x.dtype} and {weight.dtype}; convert one with .to()")
    shape = shape_of(x, kernel, stride, pads, dilation)
    if forced is None and _native_is_fastest(
        shape,
        x.dtype,
        is_channels_last(x),
        torch.is_grad_enabled() and x.requires_grad,
        torch.is_grad_enabled() and weight.requires_grad,
    ):
        return F.conv2d(x, weight, bias, stride, pads, dilation, x.shape[1])
    if min(shape.output_size) < 1:
        raise ValueError(f"the kernel {kernel} with padding {pads} is larger than the map {shape.map_size}")
    if forced == "toeplitz":
        check_toeplitz(shape)
    y: Tensor = convolve(x, weight, stride, pads, dilation, forced or "")
    return y if bias is None else y.add_(bias[:, None, None])


def _check_arguments(x: Tensor, weight: Tensor, stride: int, dilation: int) -> None:
    if weight.ndim != 4 or weight.shape[0] != x.shape[1] or weight.shape[1] != 1:
        raise ValueError(f"weight must be (C, 1, KH, KW) with C = {x.shape[1]}, got shape {tuple(weight.shape)}")
    check_floating(weight, "weight")
    if stride < 1 or dilation < 1:
        raise ValueError(f"stride and dilation must be at least 1, got {stride} and {dilation}")


def _pads(kernel: tuple[int, int], padding: str | int | tuple[int, int], dilation: int) -> tuple[int, int]:
    if padding == "same":
        if kernel[0] % 2 == 0 or kernel[1] % 2 == 0:
            raise ValueError(f"padding='same' needs an odd kernel, got {kernel}; give the padding in pixels")
        return dilation * (kernel[0] // 2), dilation * (kernel[1] // 2)
    if isinstance(padding, str):
        raise ValueError(f"padding must be 'same', pixels, or a pair of them, got {padding!r}")
    pads = (padding, padding) if isinstance(padding, int) else padding
    if len(pads) != 2 or min(pads) < 0:
        raise ValueError(f"padding must be 'same', pixels, or a pair of them, none negative, got {padding!r}")
    return pads


def _is_graph() -> bool:
    """Whether a graph is made that must not hold our operators, or sizes of one call."""
    return torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None


def _is_measured(x: Tensor, weight: Tensor) -> bool:
    """Whether the rule knows this call: plain tensors on a CPU, and not fake, compiled or vmapped ones."""
    return (
        x.device.type == "cpu"
        and type(x) in (Tensor, nn.Parameter)
        and type(weight) in (Tensor, nn.Parameter)
        and x.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not _in_forward_mode()
    )


def _in_forward_mode() -> bool:
    """Whether forward-mode gradients are on; a custom operator would drop them without a word."""
    return forward_ad._current_level >= 0


@lru_cache(maxsize=4096)
def _native_is_fastest(
    shape: DepthwiseShape, dtype: torch.dtype, channels_last: bool, grad_input: bool, grad_weight: bool
) -> bool:
    """Whether the rule picks PyTorch's own path in every direction that this call needs."""
    if min(shape.output_size) < 1:
        return True  # PyTorch says what is wrong
    needed = {"forward": True, "grad_input": grad_input, "grad_weight": grad_weight}
    return all(
        fastest_path(direction, sizes, dtype, channels_last) == "native"
        for sizes in (shape, shape.cropped())  # PyTorch's own path keeps the dead taps
        for direction, is_needed in needed.items()
        if is_needed
    )
