"""The channel part of a MogaNet block: a depthwise feed-forward network that reallocates its hidden channels.

Source: "MogaNet: Multi-order Gated Aggregation Network" (ICLR 2024, arXiv:2211.03295), section 4.3, equations 8 and 9:

    h = GELU(depthwise 3x3(1x1(x)));  CA(h) = h + sigma * (h - GELU(w . h));  y = 1x1(CA(h))

w . h is one map for all channels, so that a channel is moved away from what the channels have in common. Because
1x1(CA(h)) = W(1 + sigma) h - (W sigma) GELU(w . h), the aggregation folds into the last 1x1 for inference and leaves
one multiply-add on the C output channels of three passes over the 4C or 8C hidden ones.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullfield.layers.depthwise import DepthwiseConv2d

__all__ = ["ChannelAggregationFFN"]


class ChannelAggregationFFN(nn.Module):
    """Expand, gather 3x3, aggregate channels, project, (B, C, H, W) -> (B, C, H, W).

    Args:
        dim: Channels C.
        expansion: Width of the hidden layer over C.
        scale: Start value of the per-channel factor sigma.
        device: Where the parameters live.
        dtype: Their dtype.
    """

    def __init__(
        self, dim: int, expansion: int = 4, scale: float = 1e-5, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        hidden = expansion * dim
        self.expand = nn.Conv2d(dim, hidden, 1, device=device, dtype=dtype)
        self.depthwise = DepthwiseConv2d(hidden, 3, device=device, dtype=dtype)
        self.common = nn.Conv2d(hidden, 1, 1, device=device, dtype=dtype)
        self.sigma = nn.Parameter(torch.full((hidden,), scale, device=device, dtype=dtype))
        self.project = nn.Conv2d(hidden, dim, 1, device=device, dtype=dtype)
        self.common_weight: nn.Parameter | None = None  # -(W sigma), (C,), once fused

    def forward(self, x: Tensor) -> Tensor:
        """Expand, gather, aggregate, project."""
        h = F.gelu(self.depthwise(self.expand(x)))  # (B, hidden, H, W)
        common = F.gelu(self.common(h))  # (B, 1, H, W)
        if self.common_weight is not None:
            return torch.addcmul(self.project(h), self.common_weight[:, None, None], common)
        return self.project(torch.addcmul(h, self.sigma[:, None, None], h - common))  # type: ignore[no-any-return]

    @property
    def first_conv(self) -> nn.Conv2d:
        """The 1x1 convolution that may take over the norm before this layer."""
        return self.expand

    @torch.no_grad()
    def fuse(self) -> None:
        """Fold the aggregation into the last convolution, in place; a second call does nothing."""
        if self.common_weight is not None:
            return
        weight, sigma = self.project.weight.double(), self.sigma.double()
        self.common_weight = nn.Parameter(-(weight[:, :, 0, 0] @ sigma).to(self.project.weight.dtype))
        self.project.weight.copy_(weight * (1 + sigma)[:, None, None])
        del self.sigma
