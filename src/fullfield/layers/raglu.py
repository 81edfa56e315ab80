"""RaGLU, the channel mixer of a RaCNN block: a gated linear unit with a depthwise 3x3 and Region Attention.

Source: RaCNN (ICLR 2025 submission): RaGLU is a gated linear unit with a 3x3 depthwise convolution and RA, and
replaces the FFN. Ours: the layout,

    1x1 C -> 2*2C, split into (a, v)  ->  GELU(DW3x3(a)) * v  ->  RA  ->  1x1 2C -> C

The attention is given, so that the ablation puts a squeeze-and-excite or nothing there.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["RaGLU"]


class RaGLU(nn.Module):
    """Region-aware gated linear unit, (B, C, H, W) -> (B, C, H, W).

    Args:
        dim: Channels C.
        attention: Module (B, hidden, H, W) -> (B, hidden, H, W) that gates the hidden map, hidden = expansion * C:
            `RegionAttention`, or an identity in its place.
        expansion: Width of each half of the hidden layer over C.
        device: Where the parameters live.
        dtype: Their dtype.
    """

    def __init__(
        self, dim: int, attention: nn.Module, expansion: int = 2, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        hidden = expansion * dim
        self.expand = nn.Conv2d(dim, 2 * hidden, 1, device=device, dtype=dtype)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, device=device, dtype=dtype)
        self.act = nn.GELU()
        self.attention = attention
        self.project = nn.Conv2d(hidden, dim, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Gate the values by their neighbourhood, then by their region."""
        # two convolutions by half the weights each: halves of one output would have to be copied apart
        weight_a, weight_v = self.expand.weight.chunk(2)
        bias_a, bias_v = self.expand.bias.chunk(2) if self.expand.bias is not None else (None, None)
        a = F.conv2d(x, weight_a, bias_a)  # (B, hidden, H, W)
        v = F.conv2d(x, weight_v, bias_v)
        return self.project(self.attention(self.act(self.depthwise(a)) * v))  # type: ignore[no-any-return]

    @property
    def first_conv(self) -> nn.Conv2d:
        """The 1x1 convolution that may take over the norm before this layer."""
        return self.expand
