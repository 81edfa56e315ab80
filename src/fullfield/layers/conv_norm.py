"""Convolution followed by BatchNorm, and folding the norm into the convolution for inference.

Folding is exact in real arithmetic: BatchNorm in eval mode is y = a*x + b per channel with
a = weight / sqrt(running_var + eps) and b = bias - a * running_mean. A norm *after* a convolution scales its
output channels whatever the padding. A norm *before* one can be folded only into a 1x1 convolution, because zero
padding would otherwise meet the shift b.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fullfield.layers.depthwise import DepthwiseConv2d

__all__ = ["ConvNorm", "fold_norm_into_conv", "fold_norm_into_next_conv", "norm_as_affine"]


class ConvNorm(nn.Module):
    """Convolution, then BatchNorm, then perhaps an activation, (B, C_in, H, W) -> (B, C_out, H', W').

    Args:
        in_channels: C_in.
        out_channels: C_out.
        kernel_size: Odd; padding keeps the size at stride 1.
        stride: Of the convolution.
        depthwise: Convolve each channel by itself; C_in and C_out are the same.
        bias: Give the convolution a bias, which the norm makes redundant (some official nets have it).
        act: Activation module after the norm, None for none.
        device: Where the parameters live.
        dtype: Their dtype.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        *,
        depthwise: bool = False,
        bias: bool = False,
        act: nn.Module | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        if depthwise and in_channels != out_channels:
            raise ValueError(f"a depthwise convolution keeps the channels, got {in_channels} -> {out_channels}")
        self.conv: nn.Conv2d = (
            DepthwiseConv2d(in_channels, kernel_size, stride, bias=bias, **dd)
            if depthwise
            else nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=bias, **dd)
        )
        self.norm: nn.Module = nn.BatchNorm2d(out_channels, **dd)
        self.act = act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise, activate."""
        return self.act(self.norm(self.conv(x)))  # type: ignore[no-any-return]

    def fuse(self) -> None:
        """Fold the norm into the convolution, in place; a second call does nothing."""
        if isinstance(self.norm, nn.BatchNorm2d):
            fold_norm_into_conv(self.conv, self.norm)
            self.norm = nn.Identity()


@torch.no_grad()
def fold_norm_into_conv(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Fold a norm into the convolution before it, in place; the caller replaces the norm by an identity.

    Args:
        conv: Any convolution, with or without a bias; it has one afterwards.
        norm: In eval mode semantics: its running statistics are used.
    """
    a, b = norm_as_affine(norm)
    if conv.bias is not None:
        b = b + a * conv.bias.to(a.dtype)
    conv.weight.copy_(conv.weight.to(a.dtype) * a[:, None, None, None])
    conv.bias = nn.Parameter(b.to(conv.weight.dtype))


@torch.no_grad()
def fold_norm_into_next_conv(norm: nn.BatchNorm2d, conv: nn.Conv2d) -> None:
    """Fold a norm into the 1x1 convolution that follows it; the caller replaces the norm by an identity.

    Args:
        norm: In eval mode semantics: its running statistics are used.
        conv: kernel 1, groups 1, no padding.

    Raises:
        ValueError: The convolution is not 1x1, dense and without padding, so that folding would not be exact.
    """
    if conv.kernel_size != (1, 1) or conv.groups != 1 or conv.padding != (0, 0):
        raise ValueError(f"only a dense 1x1 convolution without padding can take the norm before it, got {conv}")
    a, b = norm_as_affine(norm)
    weight = conv.weight.to(a.dtype)
    bias = weight[:, :, 0, 0] @ b
    if conv.bias is not None:
        bias = bias + conv.bias.to(a.dtype)
    conv.weight.copy_(weight * a[None, :, None, None])
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype))


def norm_as_affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return a and b of y = a*x + b, the norm in eval mode, in float64, so that folding adds no rounding of its own."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a norm without running statistics can't be folded: it depends on the batch")
    mean, var = norm.running_mean.double(), norm.running_var.double()
    a = norm.weight.double() * torch.rsqrt(var + norm.eps)
    return a, norm.bias.double() - a * mean
