"""Depthwise convolution trained as a sum of parallel branches, and merged into one kernel for inference.

Source: structural re-parameterisation, RepLKNet (arXiv 2203.06717, guideline 3) for a small kernel beside a large
one, and UniRepLKNet (arXiv 2311.15599, section 3.1) for dilated ones. A convolution and a BatchNorm in eval mode are
linear, so a sum of branches is one convolution whose kernel is the sum of theirs, each with its taps spread by the
dilation and put in the centre of the large kernel. That is exact in real arithmetic at any stride, because all
kernels are odd and padded so that their centres meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fullfield.errors import ConfigError
from fullfield.layers.conv_norm import fold_norm_into_conv, norm_as_affine
from fullfield.layers.depthwise import DepthwiseConv2d

__all__ = ["Branch", "DepthwiseNorm", "ReparamDepthwiseConv", "embed_kernel"]


class Branch(NamedTuple):
    """One parallel convolution: an odd kernel size, or (height, width), and the distance of its taps."""

    kernel_size: int | tuple[int, int]
    dilation: int = 1


def embed_kernel(weight: Tensor, size: tuple[int, int], dilation: int = 1) -> Tensor:
    """Put a kernel's taps, spread by its dilation, in the centre of a larger kernel of zeros.

    Args:
        weight: (C_out, C_in / groups, h, w), h and w odd.
        size: Height and width of the result, both odd.
        dilation: Distance of the taps.

    Returns:
        (C_out, C_in / groups, *size), of the same dtype and device.

    Raises:
        ConfigError: A side is even, or the taps reach beyond the larger kernel.
    """
    rows, columns = (
        _centred(taps, side, dilation) for taps, side in zip(weight.shape[2:], size, strict=True)
    )  # where the taps go along each axis
    larger = weight.new_zeros((*weight.shape[:2], *size))
    larger[:, :, rows, columns] = weight
    return larger


def _centred(taps: int, side: int, dilation: int) -> slice:
    extent = dilation * (taps - 1) + 1
    if taps < 1 or taps % 2 == 0 or side % 2 == 0 or dilation < 1:
        raise ConfigError(
            f"a kernel of {taps} taps with dilation {dilation} has no common centre with one of {side}:"
            " kernel sizes must be odd and positive, dilations at least 1"
        )
    if extent > side:
        raise ConfigError(
            f"a kernel of {taps} taps with dilation {dilation} reaches over {extent} pixels, more than the {side} of"
            " the large kernel that it is to be merged into; make the large kernel larger or the branch smaller"
        )
    first = (side - extent) // 2
    return slice(first, first + extent, dilation)


class DepthwiseNorm(nn.Module):
    """Depthwise convolution without bias, then BatchNorm, (B, C, H, W) -> (B, C, ceil(H/s), ceil(W/s)).

    Args:
        channels: C.
        kernel_size: Odd, or (height, width), both odd.
        stride: s.
        dilation: Distance of the kernel's taps.
        device: Where the parameters live.
        dtype: Their dtype.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | tuple[int, int],
        stride: int = 1,
        dilation: int = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.conv = DepthwiseConv2d(channels, kernel_size, stride, dilation, bias=False, device=device, dtype=dtype)
        self.norm: nn.Module = nn.BatchNorm2d(channels, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise."""
        return self.norm(self.conv(x))  # type: ignore[no-any-return]

    def fuse(self) -> None:
        """Fold the norm into the convolution, in place; a second call does nothing."""
        if isinstance(self.norm, nn.BatchNorm2d):
            fold_norm_into_conv(self.conv, self.norm)
            self.norm = nn.Identity()

    def as_kernel(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the weight (C, 1, *size) and the bias (C,), float64, of the one convolution that equals this.

        Raises:
            ConfigError: The kernel reaches beyond `size`.
        """
        weight = self.conv.weight.detach().double()
        bias = torch.zeros_like(weight[:, 0, 0, 0]) if self.conv.bias is None else self.conv.bias.detach().double()
        if not isinstance(self.norm, nn.Identity):
            a, b = norm_as_affine(self.norm)  # type: ignore[arg-type]
            weight, bias = weight * a[:, None, None, None], bias * a + b
        return embed_kernel(weight, size, self.conv.dilation[0]), bias


class ReparamDepthwiseConv(nn.Module):
    """Sum of depthwise convolutions, a large one and branches, each with a BatchNorm of its own.

    (B, C, H, W) -> (B, C, ceil(H/s), ceil(W/s)). Parameters are named `large.conv.weight`, `large.norm.*`,
    `branches.0.conv.weight`, ..., and after `merge_branches` only `merged.weight` and `merged.bias`.

    Args:
        channels: C.
        kernel_size: Of the large convolution: odd, or (height, width), both odd.
        branches: The convolutions beside it; none gives a plain convolution with norm.
        stride: s, of all of them.
        device: Where the parameters live.
        dtype: Their dtype.

    Raises:
        ConfigError: A kernel is even, or a branch reaches beyond the large kernel, so that they can't be merged.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | tuple[int, int],
        branches: Sequence[Branch] = (),
        stride: int = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.kernel_size = _pair(kernel_size)
        branches = [Branch(*branch) for branch in branches]
        for size, dilation in [Branch(kernel_size), *branches]:
            for taps, side in zip(_pair(size), self.kernel_size, strict=True):
                _centred(taps, side, dilation)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.large: DepthwiseNorm | None = DepthwiseNorm(channels, kernel_size, stride, **dd)
        self.branches = nn.ModuleList(
            DepthwiseNorm(channels, size, stride, dilation, **dd) for size, dilation in branches
        )
        self.merged: DepthwiseConv2d | None
        self.register_module("merged", None)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the branches give, or apply the one kernel that they were merged into."""
        if self.merged is not None:
            return self.merged(x)  # type: ignore[no-any-return]
        assert self.large is not None  # noqa: S101 - for the type checker
        y: Tensor = self.large(x)
        for branch in self.branches:
            y = y + branch(x)
        return y

    @torch.no_grad()
    def merge_branches(self) -> None:
        """Replace the branches by the one convolution that equals them in eval mode, in place.

        The kernels are summed in float64. A second call does nothing.
        """
        if self.large is None:
            return
        own = self.large.conv
        kernels, biases = zip(*(part.as_kernel(self.kernel_size) for part in self._parts()), strict=True)
        # built without memory: a random start would be thrown away, and would advance the global generator
        merged = DepthwiseConv2d(own.in_channels, self.kernel_size, own.stride[0], device="meta")
        merged.weight = nn.Parameter(torch.stack(kernels).sum(0).to(own.weight.dtype))
        merged.bias = nn.Parameter(torch.stack(biases).sum(0).to(own.weight.dtype))
        self.merged = merged.train(self.training)
        self.large = None
        del self.branches[:]

    def fuse(self) -> None:
        """Fold the norms: the same as `merge_branches`."""
        self.merge_branches()

    def _parts(self) -> list[DepthwiseNorm]:
        return [part for part in (self.large, *self.branches) if isinstance(part, DepthwiseNorm)]


def _pair(kernel_size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    return height, width
