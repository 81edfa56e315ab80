"""The numbers of an effective receptive field, all from one map of contributions.

A map holds one non-negative number an input pixel; its *mass* is the sum. Distances are taken from the pixel in the
middle of the unit's own field, the centre. Plain functions on float64 arrays: they know neither models nor images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fullfield.errors import ConfigError

__all__ = [
    "THRESHOLDS",
    "Area",
    "Map",
    "coverage",
    "elongation",
    "half_mass_radius",
    "published_areas",
    "radial_profile",
    "share_outside",
    "smallest_rectangle",
    "smallest_square",
    "strips",
    "support",
]

Map = npt.NDArray[np.float64]
THRESHOLDS = (0.2, 0.3, 0.5, 0.99)
"""Shares of the mass for which areas are given: those of the RepLKNet paper (table 9)."""

_ROUNDING = 1e-12  # sums of a million float64 numbers differ by so much with their order


@dataclass(frozen=True)
class Area:
    """A window around the centre that holds at least a given share of the mass."""

    height: int
    """2i + 1 rows, before the border of the image cuts them off."""
    width: int
    ratio: float
    """Share of the image's area that it covers, r(t)."""


def smallest_square(contributions: Map, centre: tuple[int, int], share: float) -> Area:
    """Return the smallest square around the centre that holds a share of the mass.

    Args:
        contributions: (H, W), non-negative, not all zero.
        centre: (row, column) of the middle pixel.
        share: t, above 0 and at most 1.

    Returns:
        A square of side 2i + 1; what lies beyond the image's border counts neither as mass nor as area.

    Raises:
        ConfigError: The share is impossible.
    """
    mass = _centred_mass(contributions, centre, share)
    n = max(mass.shape)
    steps = np.arange(n)
    held = mass[np.minimum(steps, mass.shape[0] - 1), np.minimum(steps, mass.shape[1] - 1)]
    i = int(np.argmax(held >= share * mass[-1, -1] * (1 - _ROUNDING)))
    return _area(contributions, centre, i, i)


def smallest_rectangle(contributions: Map, centre: tuple[int, int], share: float) -> Area:
    """Return the rectangle of the least area around the centre that holds a share of the mass.

    Args:
        contributions: (H, W), non-negative, not all zero.
        centre: (row, column) of the middle pixel.
        share: t, above 0 and at most 1.

    Raises:
        ConfigError: The share is impossible.
    """
    mass = _centred_mass(contributions, centre, share)
    enough = mass >= share * mass[-1, -1] * (1 - _ROUNDING)
    halves = [(a, int(np.argmax(row))) for a, row in enumerate(enough) if row.any()]
    areas = [_area(contributions, centre, a, b) for a, b in halves]
    return min(areas, key=lambda area: (area.ratio, abs(area.height - area.width)))


def published_areas(contributions: Map, shares: tuple[float, ...] = THRESHOLDS) -> dict[float, Area]:
    """Return the "high-contribution area ratios" exactly as the RepLKNet authors' `analyze_erf.py` takes them.

    Source: Ding et al., "Scaling Up Your Kernels to 31x31", CVPR 2022, appendix. The map is log10(x + 1) of the mean
    contributions; squares grow around pixel (H // 2, W // 2) from side 3 to at most H - 1; the share must be exceeded.

    Args:
        contributions: (S, S), non-negative: the mean over images of the positive gradient, summed over the image's
            channels.
        shares: Each t.

    Returns:
        t -> its square. Where no square exceeds t, the script stops with an error; here it is the whole map.

    Raises:
        ConfigError: The map is not square, or has no mass.
    """
    H, W = contributions.shape
    if H != W:
        raise ConfigError(f"the published procedure is for square images, got {H} x {W} pixels")
    scores = np.log10(contributions + 1)
    if not scores.max() > 0:
        raise ConfigError("the published procedure has no result here: no pixel has a positive contribution")
    scores = scores / scores.max()
    mass = _centred_mass(scores, (H // 2, W // 2), 1.0)
    # the script's sums leave out what its largest square does not reach, not so its total
    held = mass.diagonal() / scores.sum()
    areas = {}
    for share in shares:
        found = next((i for i in range(1, H // 2) if held[i] > share), None)
        side = H if found is None else 2 * found + 1
        areas[share] = Area(side, side, (side / H) * (side / W))
    return areas


def radial_profile(contributions: Map, centre: tuple[int, int]) -> Map:
    """Return the mean contribution of the pixels at each distance from the centre.

    Args:
        contributions: (H, W).
        centre: (row, column) of the middle pixel.

    Returns:
        (R,), entry k of the pixels whose distance rounds to k.
    """
    rings = np.rint(_distance(contributions.shape, centre)).astype(np.int64).ravel()
    mass, pixels = np.bincount(rings, weights=contributions.ravel()), np.bincount(rings)
    profile: Map = mass / np.maximum(pixels, 1)
    return profile


def half_mass_radius(contributions: Map, centre: tuple[int, int]) -> float:
    """Return the radius, in pixels, of the smallest disc around the centre that holds half of the mass."""
    distance = _distance(contributions.shape, centre).ravel()
    order = np.argsort(distance, kind="stable")
    held = np.cumsum(contributions.ravel()[order])
    return float(distance[order][np.searchsorted(held, held[-1] / 2 * (1 - _ROUNDING))])


def coverage(contributions: Map, floor: float = 1e-3) -> float:
    """Return the share of pixels that contribute more than `floor` times the peak."""
    return float((contributions > floor * contributions.max()).mean())


def support(contributions: Map) -> float:
    """Return the share of pixels that contribute at all."""
    return float((contributions > 0).mean())


def elongation(contributions: Map, centre: tuple[int, int]) -> float:
    """Return how far the map is drawn out in one direction: 0 for round, 1 for a line of any direction.

    It is |sum m exp(2i a)| / sum m over the angles a, in the largest disc that fits the image, less the centre pixel.
    """
    return abs(_harmonic(contributions, centre, 2))


def strips(contributions: Map, centre: tuple[int, int]) -> float:
    """Return how far the mass lies along the image's axes: 1 for an upright cross, 0 for round, -1 for a diagonal one.

    Kernels that are cut into strips (51x5 and 5x51, say) leave such a cross. It is sum m cos(4a) / sum m over the
    angles a, in the largest disc that fits the image, less the centre pixel.
    """
    return _harmonic(contributions, centre, 4).real


def share_outside(contributions: Map, inside: npt.NDArray[np.bool_]) -> float:
    """Return the share of the mass outside an object: what a unit on the object sees elsewhere.

    Args:
        contributions: (H, W).
        inside: (H, W), True on the object.

    Raises:
        ConfigError: The shapes differ.
    """
    if inside.shape != contributions.shape:
        raise ConfigError(f"the object's mask is {inside.shape}, the image {contributions.shape}; they must agree")
    total = contributions.sum()
    return float(contributions[~inside].sum() / total) if total > 0 else math.nan


def _centred_mass(contributions: Map, centre: tuple[int, int], share: float) -> Map:
    """Return (A, B): entry (a, b) is the mass of the rows within a and the columns within b of the centre."""
    if not 0 < share <= 1:
        raise ConfigError(f"a share of the mass must lie above 0 and be at most 1, got {share}")
    (H, W), (y, x) = contributions.shape, centre
    if not (0 <= y < H and 0 <= x < W):
        raise ConfigError(f"the centre {centre} lies outside the image of {H} x {W} pixels")
    rows, columns = np.abs(np.arange(H) - y), np.abs(np.arange(W) - x)
    by_row = np.zeros((rows.max() + 1, W))
    np.add.at(by_row, rows, contributions)
    folded = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(folded.T, columns, by_row.T)
    mass: Map = folded.cumsum(axis=0).cumsum(axis=1)
    return mass


def _area(contributions: Map, centre: tuple[int, int], a: int, b: int) -> Area:
    (H, W), (y, x) = contributions.shape, centre
    rows = min(y, a) + min(H - 1 - y, a) + 1
    columns = min(x, b) + min(W - 1 - x, b) + 1
    return Area(2 * a + 1, 2 * b + 1, rows * columns / (H * W))


def _distance(shape: tuple[int, ...], centre: tuple[int, int]) -> Map:
    distance: Map = np.hypot(*np.ogrid[-centre[0] : shape[0] - centre[0], -centre[1] : shape[1] - centre[1]])
    return distance


def _harmonic(contributions: Map, centre: tuple[int, int], order: int) -> complex:
    (H, W), (y, x) = contributions.shape, centre
    rows, columns = np.ogrid[-y : H - y, -x : W - x]
    distance = np.hypot(rows, columns)
    inside = (distance > 0) & (distance <= min(y, x, H - 1 - y, W - 1 - x))
    mass = contributions[inside]
    if not mass.sum() > 0:
        return 0j
    angles = np.broadcast_to(np.arctan2(rows, columns), contributions.shape)[inside]
    return complex((mass * np.exp(1j * order * angles)).sum() / mass.sum())
