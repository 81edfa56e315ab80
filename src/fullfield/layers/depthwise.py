"""Depthwise convolution as a module: `nn.Conv2d` whose forward takes the fastest path of our operator."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fullfield.ops import depthwise_conv2d

__all__ = ["DepthwiseConv2d"]


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution that keeps the size at stride 1, (B, C, H, W) -> (B, C, ceil(H/s), ceil(W/s)).

    It is an `nn.Conv2d` in all but speed: parameters, their names and their initialisation are the same.

    Args:
        channels: C.
        kernel_size: Odd, or (height, width) of a strip, both odd.
        stride: s.
        dilation: Distance of the kernel's taps.
        bias: Learn a bias.
        device: Where the parameters live.
        dtype: Their dtype.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | tuple[int, int],
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        super().__init__(
            channels,
            channels,
            (height, width),
            stride,
            padding=(dilation * (height // 2), dilation * (width // 2)),
            dilation=dilation,
            groups=channels,
            bias=bias,
            device=device,
            dtype=dtype,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; dilated kernels take PyTorch's own path."""
        if self.dilation != (1, 1):
            return super().forward(x)
        return depthwise_conv2d(x, self.weight, self.bias, stride=self.stride[0])
