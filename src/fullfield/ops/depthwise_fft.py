"""Depthwise convolution by the fast Fourier transform, a cache-sized block of maps at a time.

A circular correlation of length n >= H + p is free of wrap-around at all pixels that are kept: what wraps falls on
outputs and lags that are cut off (the full length H + k - 1 is not needed). Stride and dilation are zeros between
pixels. Its cost does not depend on the kernel but for n. Half types are transformed in float32.

A correlation is a product with a conjugate, which is written out (`conj_physical_`): PyTorch's lazy conjugate is
lost where the operator runs inside a compiled graph.

What is not finite spreads over its map of one sample and channel, and in the gradient of the weight over that
channel's kernel; it does not reach other samples or channels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fullfield.ops.depthwise_shape import DepthwiseShape, transpose
from fullfield.ops.layout import is_channels_last

__all__ = ["fft_size", "forward_fft", "grad_input_fft", "grad_weight_fft"]

BLOCK_POINTS = 2**19  # of float32: 2 MiB, and as much again for each spectrum
CHANNELS = 16  # a block's channels at least, where the cache allows: one cache line of channels_last


def forward_fft(x: Tensor, weight: Tensor, shape: DepthwiseShape) -> Tensor:
    """Convolve, (B, C, H, W) -> (B, C, H', W') in the layout of `x`."""
    n, s = fft_size(shape), shape.stride
    height, width = _dense_output(shape)
    layout = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    size = (shape.batch, shape.channels, *shape.output_size)
    y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=layout)
    for channels, blocks in _blocks(shape, n):
        taps = _spread(_wide(weight[channels, 0]), shape.dilation)
        spectrum = torch.fft.rfft2(_place(taps, n, shape.padding)).conj_physical_()
        for samples in blocks:
            maps = torch.fft.rfft2(_wide(x[samples, channels]).contiguous(), s=n).mul_(spectrum)
            y[samples, channels] = torch.fft.irfft2(maps, s=n)[..., :height:s, :width:s]
    return y


def grad_input_fft(g: Tensor, weight: Tensor, shape: DepthwiseShape) -> Tensor:
    """Return the input's gradient, (B, C, H', W') -> (B, C, H, W) in the layout of `g`."""
    if shape.stride > 1:
        s, shape = shape.stride, shape._replace(stride=1)
        dense = g.new_zeros(*g.shape[:2], *shape.output_size)  # every pixel an output
        dense[:, :, ::s, ::s] = g
        g = dense
    return forward_fft(*transpose(g, weight, shape))


def grad_weight_fft(x: Tensor, g: Tensor, shape: DepthwiseShape) -> Tensor:
    """Return the weight's gradient, (C, 1, KH, KW)."""
    n, d = fft_size(shape), shape.dilation
    dw = x.new_empty(shape.channels, 1, *shape.kernel)
    for channels, blocks in _blocks(shape, n):
        total: Tensor | None = None
        for samples in blocks:
            maps = torch.fft.rfft2(_wide(x[samples, channels]).contiguous(), s=n)
            kernel = torch.fft.rfft2(_spread(_wide(g[samples, channels]), shape.stride).contiguous(), s=n)
            product = maps.mul_(kernel.conj_physical_()).sum(0)
            total = product if total is None else total.add_(product)
        assert total is not None  # noqa: S101 - a batch without samples does not come here
        lags = torch.fft.irfft2(total, s=n).roll(shape.padding, (1, 2))  # lag -p first
        dw[channels, 0] = lags[:, : shape.reach[0] + 1 : d, : shape.reach[1] + 1 : d].to(x.dtype)
    return dw


def fft_size(shape: DepthwiseShape) -> tuple[int, int]:
    """Return the transform's height and width: at least H + p, and a multiple of 4 whose only primes are 2, 3, 5, 7."""
    height, width = (
        _smooth(max(size + pad, reach + 1, output))
        for size, pad, reach, output in zip(
            shape.map_size, shape.padding, shape.reach, _dense_output(shape), strict=True
        )
    )
    return height, width


def _smooth(least: int) -> int:
    size = -(-least // 4) * 4
    while not _is_smooth(size):
        size += 4
    return size


def _is_smooth(number: int) -> bool:
    for prime in (2, 3, 5, 7):
        while number % prime == 0:
            number //= prime
    return number == 1


def _dense_output(shape: DepthwiseShape) -> tuple[int, int]:
    """H', W' if every pixel were kept, in pixels: up to the last one that the stride keeps."""
    height, width = ((size - 1) * shape.stride + 1 for size in shape.output_size)
    return height, width


def _blocks(shape: DepthwiseShape, n: tuple[int, int]) -> Iterator[tuple[slice, list[slice]]]:
    """Yield slices of channels, each with slices of samples, whose maps fit the cache together."""
    maps = max(1, BLOCK_POINTS // (n[0] * n[1]))
    channels = max(min(CHANNELS, maps), maps // shape.batch)
    samples = max(1, maps // channels)
    batch = [slice(start, start + samples) for start in range(0, shape.batch, samples)]
    for start in range(0, shape.channels, channels):
        yield slice(start, start + channels), batch


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _spread(maps: Tensor, distance: int) -> Tensor:
    """Put distance - 1 zeros between neighbouring pixels of (..., H, W)."""
    if distance == 1:
        return maps
    height, width = ((size - 1) * distance + 1 for size in maps.shape[-2:])
    spread = maps.new_zeros(*maps.shape[:-2], height, width)
    spread[..., ::distance, ::distance] = maps
    return spread


def _place(taps: Tensor, n: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """Put taps (c, kh, kw) on a circle of n points so that tap p lies at the origin."""
    kernel = taps.new_zeros(taps.shape[0], *n)
    kernel[:, : taps.shape[1], : taps.shape[2]] = taps
    return kernel.roll((-padding[0], -padding[1]), (1, 2))
