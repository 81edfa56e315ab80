"""Large kernel attention (LKA): a map multiplied by a convolution of itself with a large, decomposed kernel.

Source: "Visual Attention Network" (VAN, arXiv:2202.09741), section 3.1, equation 1. A K x K depthwise
convolution is approximated by a (2d-1) x (2d-1) depthwise convolution, a ceil(K/d) x ceil(K/d) depthwise convolution
of dilation d and a 1x1 convolution. For K = 21 and d = 3 they are 5x5, 7x7 and 1x1 and see 23 x 23 pixels; the 1x1
makes the attention depend on all channels. There is no softmax or sigmoid: the product is the attention.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fullfield.errors import ConfigError
from fullfield.layers.depthwise import DepthwiseConv2d

__all__ = ["LargeKernelAttention", "decomposed_kernel"]


def decomposed_kernel(kernel_size: int, dilation: int) -> tuple[int, int]:
    """Return the sides of the two depthwise kernels, plain and dilated, that stand for one large kernel.

    Args:
        kernel_size: K, the side of the large kernel in pixels.
        dilation: d, the distance of the dilated kernel's taps in pixels.

    Returns:
        2d - 1 and ceil(K / d).

    Raises:
        ConfigError: A size below 1, or an even dilated kernel, which no padding centres on a pixel.
    """
    for name, value in (("kernel_size", kernel_size), ("dilation", dilation)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name} of large kernel attention must be an int of at least 1, got {value!r}")
    dilated = -(-kernel_size // dilation)
    if dilated % 2 == 0:
        raise ConfigError(
            f"kernel_size / dilation, rounded up, must be odd, got {kernel_size} / {dilation} -> {dilated};"
            f" kernel_size={(dilated - 1) * dilation} or {(dilated + 1) * dilation} with that dilation will do"
        )
    return 2 * dilation - 1, dilated


class LargeKernelAttention(nn.Module):
    """x * attention(x), attention = 1x1(dilated depthwise(depthwise(x))), (B, C, H, W) -> (B, C, H, W).

    Args:
        dim: Channels C.
        kernel_size: K of the kernel that is decomposed.
        dilation: d.
        device: Where the parameters live.
        dtype: Their dtype.

    Raises:
        ConfigError: ceil(K / d) is even, or one of them is below 1.
    """

    def __init__(
        self, dim: int, kernel_size: int = 21, dilation: int = 3, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        local, dilated = decomposed_kernel(kernel_size, dilation)
        self.depthwise = DepthwiseConv2d(dim, local, device=device, dtype=dtype)
        self.dilated = DepthwiseConv2d(dim, dilated, dilation=dilation, device=device, dtype=dtype)
        self.pointwise = nn.Conv2d(dim, dim, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply the map by its attention."""
        return x * self.pointwise(self.dilated(self.depthwise(x)))  # type: ignore[no-any-return]
