"""A large square depthwise convolution as a sum of two crossed strips and a small square.

Source: SLaK, "More ConvNets in the 2020s" (arXiv 2207.03620, section 3.2): a K x K kernel becomes a tall K x N strip, a
wide N x K strip and an N x N square, each with a BatchNorm. That is 2 K N + N^2 products a pixel and not K^2. All three
are linear in eval mode, so the square can be added to the centre of the tall strip, and the whole is also one dense
K x K kernel, of rank at most 2 N. Both are exact in real arithmetic; zero padding included, because the kernels are odd
and padded so that their centres meet.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fullfield.errors import ConfigError
from fullfield.layers.depthwise import DepthwiseConv2d
from fullfield.layers.reparam import DepthwiseNorm, embed_kernel

__all__ = ["BandDepthwiseConv"]


class BandDepthwiseConv(nn.Module):
    """Sum of a tall, a wide and a small depthwise convolution, each with a BatchNorm, (B, C, H, W) -> (B, C, H, W).

    Parameters are named `tall.conv.weight`, `tall.norm.*`, `wide.*` and `small.*`; after `merge_branches`
    `tall.weight`, `tall.bias` and `wide.weight`; after `merge_dense` `dense.weight` and `dense.bias`.

    Args:
        channels: C.
        kernel_size: K, the long side of the strips; odd.
        band: N, their short side and both sides of the small square; odd, at most K. Where N = K there is no square.
        norm: Normalise each of the three.
        device: Where the parameters live.
        dtype: Their dtype.

    Raises:
        ConfigError: A side is even, or the band is wider than the kernel is long.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        band: int,
        *,
        norm: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0 or band % 2 == 0 or not 1 <= band <= kernel_size:
            raise ConfigError(
                f"a band must be odd and at most as wide as its kernel is long, which is odd too; got a band of {band}"
                f" and a kernel of {kernel_size}"
            )
        self.kernel_size, self.band = kernel_size, band
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.tall: nn.Module | None = _branch(channels, (kernel_size, band), norm, **dd)
        self.wide: nn.Module | None = _branch(channels, (band, kernel_size), norm, **dd)
        self.small: nn.Module | None
        self.register_module("small", _branch(channels, (band, band), norm, **dd) if band < kernel_size else None)
        self.dense: nn.Module | None
        self.register_module("dense", None)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the branches give, or apply the one kernel that they were merged into."""
        if torch.compiler.is_exporting():  # the norms can't tell the layout of a map of dynamic size, and would pin it
            x = x.contiguous()
        if self.dense is not None:
            return self.dense(x)  # type: ignore[no-any-return]
        assert self.tall is not None and self.wide is not None  # noqa: S101, PT018 - for the type checker
        y: Tensor = self.tall(x) + self.wide(x)
        return y if self.small is None else y + self.small(x)

    @torch.no_grad()
    def merge_branches(self) -> None:
        """Fold the norms and add the small square to the tall strip, in place, for inference; or merge all into one.

        Two strips cost 2 K N products a pixel and one square K^2, so kernels with K < 2 N become dense. Kernels are
        summed in float64. A second call does nothing.
        """
        if self.kernel_size < 2 * self.band:
            self.merge_dense()
        elif isinstance(self.tall, DepthwiseNorm):
            assert isinstance(self.wide, DepthwiseNorm)  # noqa: S101 - for the type checker
            tall, bias = _sum_of_kernels([self.tall, self.small], (self.kernel_size, self.band))
            wide, wide_bias = _sum_of_kernels([self.wide], (self.band, self.kernel_size))
            dtype = self.wide.conv.weight.dtype
            self.tall = _convolution(tall.to(dtype), (bias + wide_bias).to(dtype)).train(self.training)
            self.wide = _convolution(wide.to(dtype), None).train(self.training)
            self.small = None

    @torch.no_grad()
    def merge_dense(self) -> None:
        """Merge everything into one dense K x K convolution, in place, for inference; a second call does nothing.

        It is exact too, but K / 2N times the products: `merge_branches` takes it only where it saves some.
        """
        if self.dense is None:
            parts = [self.tall, self.wide, self.small]
            weight, bias = _sum_of_kernels(parts, (self.kernel_size, self.kernel_size))
            dtype = next(self.parameters()).dtype
            self.dense = _convolution(weight.to(dtype), bias.to(dtype)).train(self.training)
            self.tall = self.wide = self.small = None

    def fuse(self) -> None:
        """Fold the norms: the same as `merge_branches`."""
        self.merge_branches()


def _branch(channels: int, kernel_size: tuple[int, int], norm: bool, **dd: Any) -> DepthwiseNorm:
    branch = DepthwiseNorm(channels, kernel_size, **dd)
    if not norm:
        branch.norm = nn.Identity()
    return branch


def _sum_of_kernels(parts: list[nn.Module | None], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return weight (C, 1, *size) and bias (C,), float64, of the sum of branches, normalised or merged already."""
    kernels, biases = zip(*(_as_kernel(part, size) for part in parts if part is not None), strict=True)
    return torch.stack(kernels).sum(0), torch.stack(biases).sum(0)


def _as_kernel(part: nn.Module, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    if isinstance(part, DepthwiseNorm):
        return part.as_kernel(size)
    assert isinstance(part, DepthwiseConv2d)  # noqa: S101 - for the type checker
    weight = part.weight.detach().double()
    bias = torch.zeros_like(weight[:, 0, 0, 0]) if part.bias is None else part.bias.detach().double()
    return embed_kernel(weight, size), bias


def _convolution(weight: Tensor, bias: Tensor | None) -> DepthwiseConv2d:
    # built without memory: a random start would be thrown away, and would advance the global generator
    size = (weight.shape[2], weight.shape[3])
    conv = DepthwiseConv2d(weight.shape[0], size, bias=bias is not None, device="meta")
    conv.weight = nn.Parameter(weight)
    if bias is not None:
        conv.bias = nn.Parameter(bias)
    return conv
