"""Global response normalisation (GRN): channels compete by how strongly they respond to the whole map.

Source: ConvNeXt V2 (arXiv 2301.00808, section 3, algorithm 1):

    g_c = ||x_c||_2 over the map,    n_c = g_c / (mean of g over the channels + eps),    y = x (1 + gamma n) + beta

The 1 is the residual connection. With gamma = beta = 0, the start, it is the identity. UniRepLKNet (arXiv
2311.15599) folds beta into the linear layer that follows; the rest depends on the image and can't be folded.
timm's `GlobalResponseNorm` always has its beta, hence this one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["GRN"]


class GRN(nn.Module):
    """Scale every channel by its share of the map's response, (B, C, H, W) -> (B, C, H, W).

    Args:
        dim: Channels C.
        bias: Learn beta.
        eps: Added to the mean response, in the units of x.
        device: Where the parameters live.
        dtype: Their dtype.
    """

    def __init__(self, dim: int, bias: bool = True, eps: float = 1e-6, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.gamma = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        self.beta: nn.Parameter | None
        self.register_parameter("beta", nn.Parameter(torch.empty(dim, device=device, dtype=dtype)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make it the identity."""
        nn.init.zeros_(self.gamma)
        if self.beta is not None:
            nn.init.zeros_(self.beta)

    def forward(self, x: Tensor) -> Tensor:
        """Measure each channel's response, compare it with the mean, scale."""
        response = _norm(x)
        share = response / (response.mean(dim=1, keepdim=True) + self.eps)
        scale: Tensor = 1 + self.gamma.view(1, -1, 1, 1) * share
        if self.beta is None:
            return x * scale
        return torch.addcmul(self.beta.view(1, -1, 1, 1), x, scale)  # one pass over the map

    def extra_repr(self) -> str:
        """Show what a reader of a printed model wants to know."""
        return f"{self.dim}, bias={self.beta is not None}, eps={self.eps}"


def _norm(x: Tensor) -> Tensor:
    """Return every channel's Euclidean norm over the map, (B, C, 1, 1)."""
    if x.dtype in (torch.float16, torch.bfloat16):  # squares could overflow
        half: Tensor = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
        return half
    # `vector_norm` takes 4 to 14 times as long on channels_last maps; the floor keeps a dead channel's gradient at 0.
    return x.square().sum((2, 3), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny).sqrt()
