"""Which path of the depthwise convolution is fastest, for each direction by itself.

The rule was measured on CPUs by `benchmarks/depthwise_cpu.py`; `fullfield bench --op depthwise` measures it again.
First the kernel's width chooses between PyTorch's kernels (`DIRECT`), then two rates say whether the Fourier
transform is faster than those (`MACS_PER_NS`, `FFT_NS_PER_POINT`). Only ratios matter, so it holds on other machines
of the kind. On GPUs and other devices nothing was measured: they take PyTorch's own path.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from fullfield.ops.depthwise_fft import fft_size
from fullfield.ops.depthwise_shape import DepthwiseShape

__all__ = ["DIRECTIONS", "fastest_path"]

DIRECTIONS = ("forward", "grad_input", "grad_weight")

ANY = 10**6

# (direction, layout of the input) -> (widest kernel in pixels, path), the first that fits
DIRECT: dict[tuple[str, str], tuple[tuple[int, str], ...]] = {
    ("forward", "nchw"): ((13, "native"), (ANY, "channels_last")),
    ("forward", "channels_last"): ((10, "native"), (13, "channels_last"), (ANY, "native")),
    ("grad_input", "nchw"): ((13, "nchw"), (ANY, "channels_last")),
    ("grad_input", "channels_last"): ((ANY, "channels_last"),),
    ("grad_weight", "nchw"): ((ANY, "nchw"),),
    ("grad_weight", "channels_last"): ((ANY, "channels_last"),),
}
STRIDED = DIRECT | {
    ("forward", "channels_last"): ((ANY, "native"),),
    ("grad_input", "nchw"): ((ANY, "native"),),
    ("grad_input", "channels_last"): ((ANY, "native"),),
}
DILATED = {key: ((ANY, key[1]),) for key in DIRECT}

# MACs: below, a call of our operators costs more than they save, if the kernel is not wide
SMALL_WORK = {"forward": 4e6, "grad_input": 6e5, "grad_weight": 6e5}
SMALL_MAP = 200  # pixels: here a call for each sample (grad_weight in channels_last) costs more than NCHW copies
TOEPLITZ_BATCH, TOEPLITZ_TAPS = 32, 81  # on small maps, grad_weight: at least so many samples and taps
MOST_PADDING = 6  # pixels: dilated kernels with no more are fast in PyTorch, forward

# One thread of a 2.6 GHz core with AVX-512.
MACS_PER_NS = {"forward": 36.0, "grad_input": 36.0, "grad_weight": 27.0}  # of `DIRECT`, taps on padding not counted
FFT_NS_PER_POINT = 6.0  # there and back, for one map

# float64 and float16 have no fast kernel in oneDNN; from 7x7 the transform wins at every size of map.
OTHER_TYPES_FFT_TAPS = 49


@lru_cache(maxsize=4096)
def fastest_path(direction: str, shape: DepthwiseShape, dtype: torch.dtype, channels_last: bool) -> str:
    """Return the path that was fastest on CPUs.

    Args:
        direction: One of `DIRECTIONS`.
        shape: Sizes of the convolution without dead taps.
        dtype: Of the map.
        channels_last: Whether the input is laid out NHWC.

    Returns:
        One of `PATHS["depthwise_conv2d"]`.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        large = shape.kernel[0] * shape.kernel[1] >= OTHER_TYPES_FFT_TAPS
        return "native" if shape.stride > 1 else "fft" if large else "nchw"
    if shape.stride == 1 and _fft_ns(shape) < _direct_ns(direction, shape):
        return "fft"
    if shape.macs < SMALL_WORK[direction] and shape.kernel[1] <= DIRECT["forward", "nchw"][0][0]:
        return "native"
    if max(shape.kernel) <= 3 and (shape.dilation == 1 or direction == "grad_weight"):
        return "native"
    if direction == "forward" and shape.dilation > 1 and shape.padding[1] <= MOST_PADDING:
        return "native"
    if direction == "grad_weight" and math.prod(shape.map_size) < SMALL_MAP:
        large = shape.batch >= TOEPLITZ_BATCH and math.prod(shape.kernel) >= TOEPLITZ_TAPS
        return "toeplitz" if large else "nchw"
    table = DILATED if shape.dilation > 1 else STRIDED if shape.stride > 1 else DIRECT
    rows = table[direction, "channels_last" if channels_last else "nchw"]
    return next(path for width, path in rows if shape.kernel[1] <= width)


def _fft_ns(shape: DepthwiseShape) -> float:
    """A transform there and back for each map, and one of the kernel for each channel."""
    height, width = fft_size(shape)
    return FFT_NS_PER_POINT * height * width * shape.channels * (shape.batch + 0.5)


def _direct_ns(direction: str, shape: DepthwiseShape) -> float:
    rows, columns = (
        _products(*sizes, shape.stride, shape.dilation)
        for sizes in zip(shape.map_size, shape.output_size, shape.kernel, shape.padding, strict=True)
    )
    return rows * columns * shape.channels * shape.batch / MACS_PER_NS[direction]


def _products(size: int, output: int, kernel: int, padding: int, stride: int, dilation: int) -> int:
    """Products of one axis that have a pixel of the map, not padding, as a factor."""
    first_pixels = [dilation * tap - padding for tap in range(kernel)]  # what the first output meets, tap by tap
    return sum(max(0, min(output, -(-(size - first) // stride)) - max(0, -(first // stride))) for first in first_pixels)
