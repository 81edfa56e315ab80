"""Global-local filter: half the channels see 3x3 pixels, the other half the whole map, through the Fourier domain.

Source: HorNet (Rao et al., NeurIPS 2022, arXiv:2207.14284, section 3.1); the global half is GFNet's filter (Rao et
al., NeurIPS 2021, arXiv:2107.00645), a circular convolution with a kernel as large as the map, learned as its
spectrum. At another map size the spectrum is resized bilinearly, its corners kept in place, as the official code does.
Norms stand before and after, and the halves leave interleaved: local, global, local, global.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from fullfield.errors import ConfigError
from fullfield.layers.depthwise import DepthwiseConv2d

__all__ = ["GlobalLocalFilter", "filter_spectrum", "resize_spectrum"]


def filter_spectrum(x: Tensor, spectrum: Tensor) -> Tensor:
    """Multiply the spectrum of every channel by its filter: a circular convolution over the whole map.

    Args:
        x: (B, C, H, W), real. Half types are transformed in float32, float64 stays float64.
        spectrum: The filters, (C, h, w, 2), real and imaginary parts, over the rows' frequencies and the columns'
            non-negative ones; resized by `resize_spectrum` where (h, w) is not (H, W // 2 + 1).

    Returns:
        (B, C, H, W), float32 or float64.

    Raises:
        ValueError: The spectrum is not one filter a channel, (C, h, w, 2).
    """
    if spectrum.ndim != 4 or spectrum.shape[0] != x.shape[1] or spectrum.shape[3] != 2:
        raise ValueError(
            f"spectrum must be (C, h, w, 2) for the {x.shape[1]} channels of x, got shape {tuple(spectrum.shape)}"
        )
    height, width = x.shape[2:]
    dtype = torch.promote_types(x.dtype, torch.float32)
    z = torch.fft.rfft2(x.to(dtype), norm="ortho")  # (B, C, H, W // 2 + 1)
    z = z * torch.view_as_complex(resize_spectrum(spectrum.to(dtype), height, width))
    y: Tensor = torch.fft.irfft2(z, s=(height, width), norm="ortho")
    return y


def resize_spectrum(spectrum: Tensor, height: int, width: int) -> Tensor:
    """Resize filters to maps of another size, bilinearly between frequencies, first and last in place.

    Args:
        spectrum: (C, h, w, 2).
        height: H of the map, pixels.
        width: W of the map, pixels.

    Returns:
        (C, H, W // 2 + 1, 2), contiguous.
    """
    size = (height, width // 2 + 1)
    # a graph for any size can't ask whether this one fits; resizing to the same size changes no bit
    if torch.compiler.is_exporting() or spectrum.shape[1:3] != size:
        parts = spectrum.permute(3, 0, 1, 2)  # (2, C, h, w)
        spectrum = F.interpolate(parts, size=size, mode="bilinear", align_corners=True).permute(1, 2, 3, 0)
    return spectrum.contiguous()


class GlobalLocalFilter(nn.Module):
    """Depthwise operator of local and global reach, (B, C, H, W) -> (B, C, H, W).

    Args:
        dim: Channels C, even; the first half is filtered locally.
        size: Side in pixels of the map that the filter is learned for; its spectrum is (size, size // 2 + 1).
        device: Where the parameters live.
        dtype: Their dtype.

    Raises:
        ConfigError: `dim` is odd, or `size` is smaller than 1.
    """

    def __init__(self, dim: int, size: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        if dim < 2 or dim % 2:
            raise ConfigError(f"a global-local filter halves its channels, so they must be even, got {dim}")
        if size < 1:
            raise ConfigError(f"size must be the side of a map, at least 1 pixel, got {size}")
        dd = {"device": device, "dtype": dtype}
        self.size = size
        self.pre_norm = LayerNorm2d(dim, eps=1e-6, **dd)
        self.local = DepthwiseConv2d(dim // 2, 3, bias=False, **dd)
        # real, so that casts, files and optimisers treat it as any other weight
        self.complex_weight = nn.Parameter(torch.empty(dim // 2, size, size // 2 + 1, 2, **dd))
        self.post_norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the spectrum as the official code does: normal, deviation 0.02, cut at 2."""
        nn.init.trunc_normal_(self.complex_weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, filter both halves, interleave, normalise."""
        near, far = self.pre_norm(x).chunk(2, dim=1)
        near = self.local(near)
        far = filter_spectrum(far, self.complex_weight).to(near.dtype)
        # (B, H, W, C / 2) twice -> (B, H, W, C): the interleaving is the only copy, already as the norm wants it
        x = torch.stack((near.permute(0, 2, 3, 1), far.permute(0, 2, 3, 1)), dim=-1).flatten(-2)
        return self.post_norm(x).permute(0, 3, 1, 2)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Show what a reader of a printed model wants to know."""
        return f"{self.post_norm.normalized_shape[0]}, size={self.size}"
