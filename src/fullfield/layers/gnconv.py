"""Recursive gated convolution (gnConv): spatial interactions of order n from n gated products.

Source: HorNet (Rao et al., NeurIPS 2022, arXiv:2207.14284, section 3.1), with the factor s on every gate that the
paper calls 1/alpha. With C_k = C / 2^(n-1-k) channels,

    [p_0, q_0, ..., q_(n-1)] = L_in(x)          p_0 and q_0 have C_0 channels, q_k has C_k
    p_(k+1) = g_k(p_k) * s f_k(q_k)             g_0 = identity, g_k is linear from C_(k-1) to C_k channels
    y = L_out(p_n)

where f is one depthwise operator on all q together. The linear maps run on a channels-last view: the norm before
this layer leaves its map in that layout, and a slice of channels is then no obstacle to a product.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullfield.errors import ConfigError

__all__ = ["GnConv", "gnconv_widths"]


def gnconv_widths(dim: int, order: int) -> tuple[int, ...]:
    """Return C_0 to C_(n-1), the channels of the gates; the last is `dim`, each other half of the next.

    Args:
        dim: Channels C.
        order: n.

    Raises:
        ConfigError: The order is smaller than 1, or C can't be halved n - 1 times.
    """
    if order < 1:
        raise ConfigError(f"the order of a recursive gated convolution must be at least 1, got {order}")
    if dim < 1 or dim % 2 ** (order - 1):
        raise ConfigError(
            f"order {order} halves the channels {order - 1} times, which {dim} channels do not allow; use a multiple"
            f" of {2 ** (order - 1)} or a lower order"
        )
    return tuple(dim // 2 ** (order - 1 - k) for k in range(order))


class GnConv(nn.Module):
    """Recursive gated convolution, (B, C, H, W) -> (B, C, H, W).

    Args:
        dim: Channels C.
        order: n, the number of gates.
        depthwise: f, a module (B, S, H, W) -> (B, S, H, W) with S = `sum(gnconv_widths(dim, order))`, which mixes
            pixels and not channels.
        scale: s, the factor on every gate.
        device: Where the parameters live.
        dtype: Their dtype.

    Raises:
        ConfigError: `dim` and `order` do not fit, see `gnconv_widths`.
    """

    def __init__(
        self, dim: int, order: int, depthwise: nn.Module, scale: float = 1.0, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.widths = gnconv_widths(dim, order)
        self.scale = scale
        self.proj_in = nn.Linear(dim, 2 * dim, **dd)
        self.depthwise = depthwise
        self.pws = nn.ModuleList(
            nn.Linear(narrow, wide, **dd) for narrow, wide in zip(self.widths, self.widths[1:], strict=False)
        )
        self.proj_out = nn.Linear(dim, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Gate n times, each time with twice as many channels."""
        x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        # two products by parts of the weights: the parts of one output would have to be copied apart
        first = self.widths[0]
        q = F.linear(x, self.proj_in.weight[first:], self.proj_in.bias[first:])  # (B, H, W, S)
        q = self.depthwise(q.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        for (weight, bias), gate in zip(self._gated(), q.split(self.widths, dim=-1), strict=True):
            # s on the weights, which are smaller than the maps
            x = F.linear(x, weight, bias) if self.scale == 1 else F.linear(x, self.scale * weight, self.scale * bias)
            x = x * gate  # (B, H, W, C_k)
        return self.proj_out(x).permute(0, 3, 1, 2)  # type: ignore[no-any-return]

    def _gated(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Weight and bias of the linear map before every product; the first is L_in's part that makes p_0."""
        first = self.widths[0]
        yield self.proj_in.weight[:first], self.proj_in.bias[:first]
        for pw in self.pws:
            yield pw.weight, pw.bias  # type: ignore[misc]

    @torch.no_grad()
    def fuse(self) -> None:
        """Fold s into the weights, in place; a second call does nothing."""
        if self.scale != 1:
            for tensors in self._gated():
                for tensor in tensors:
                    tensor.mul_(self.scale)
            self.scale = 1.0

    def extra_repr(self) -> str:
        """Show what a reader of a printed model wants to know."""
        return f"{self.widths[-1]}, order={len(self.widths)}, scale={self.scale:.4g}"
