"""How far a feature map is from moving with the image: the equivariance error ‖f(Tx) - T f(x)‖ / ‖f(x)‖ of one image.

T is a shift. Circular shifts by whole units lose nothing, so a net whose layers all wrap around has error 0 at every
multiple of its stride. A shift by one pixel is a fraction of a unit: the map is shifted by the phase of its Fourier
transform, which is exact for what a map can hold without aliasing (Karras et al. 2021, section 2, use the same ideal).
Of windows cut from a larger image the common part is compared; there new pixels come in at the border.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["cut", "fractional_roll", "overlap_error", "relative_error", "rolled"]


def rolled(maps: Tensor, offsets: Tensor) -> Tensor:
    """Shift every map circularly by its own offset.

    Args:
        maps: (B, C, h, w).
        offsets: (B, 2), integers: rows down and columns right.
    """
    return torch.stack(
        [one.roll((int(y), int(x)), dims=(-2, -1)) for one, (y, x) in zip(maps, offsets.tolist(), strict=True)]
    )


def cut(images: Tensor, offsets: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut a window (H, W) from every image at its own offset.

    Args:
        images: (B, C, H', W').
        offsets: (B, 2), integers: the row and column of the window's first pixel.
        size: (H, W); every window must lie inside.
    """
    H, W = size
    return torch.stack([one[:, y : y + H, x : x + W] for one, (y, x) in zip(images, offsets.tolist(), strict=True)])


def fractional_roll(maps: Tensor, offset: tuple[float, float]) -> Tensor:
    """Shift maps circularly by a fraction of a unit, by the phase of their Fourier transform.

    Args:
        maps: (B, C, h, w), floating point.
        offset: Units down and right.

    Returns:
        (B, C, h, w), float64. Whole offsets give `torch.roll`; of an even side the highest frequency, whose phase a
        map can't hold, keeps the cosine part, as in trigonometric interpolation.
    """
    shifted = maps.double()
    for dim, units in zip((-2, -1), offset, strict=True):
        n = shifted.shape[dim]
        frequency = torch.fft.rfftfreq(n, dtype=torch.float64, device=maps.device)
        phase = torch.exp(-2j * math.pi * frequency * units)
        if n % 2 == 0:
            phase[-1] = phase[-1].real.clone()
        phase = phase.unsqueeze(-1) if dim == -2 else phase
        shifted = torch.fft.irfft(torch.fft.rfft(shifted, dim=dim) * phase, n=n, dim=dim)
    return shifted


def relative_error(found: Tensor, expected: Tensor) -> Tensor:
    """Return ‖found - expected‖ / ‖expected‖ of every image, over channels and units.

    Args:
        found: (B, C, h, w).
        expected: The same shape.

    Returns:
        (B,), float64: 0 where both are equal; unrelated maps of mean 0 and equal norm have √2.
    """
    found, expected = found.double().flatten(1), expected.double().flatten(1)
    tiny = torch.finfo(torch.float64).tiny  # two maps of zeros are equal
    error: Tensor = (found - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(tiny)
    return error


def overlap_error(found: Tensor, reference: Tensor, units: Tensor) -> Tensor:
    """Return the error on the common part of the maps of two windows.

    Args:
        found: (B, C, h, w), of the windows that lie `units` further down and right.
        reference: (B, C, h, w).
        units: (B, 2), integers below h and w.

    Returns:
        (B,), as `relative_error`.
    """
    h, w = found.shape[2:]
    errors = [
        relative_error(one[None, :, : h - y, : w - x], other[None, :, y:, x:])
        for one, other, (y, x) in zip(found, reference, units.tolist(), strict=True)
    ]
    return torch.cat(errors)
