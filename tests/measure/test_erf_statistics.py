"""The numbers of a field against slow loops over every window, and on maps whose answer is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from fullfield.errors import ConfigError
from fullfield.measure.erf_statistics import (
    Area,
    Map,
    coverage,
    elongation,
    half_mass_radius,
    published_areas,
    radial_profile,
    share_outside,
    smallest_rectangle,
    smallest_square,
    strips,
    support,
)

CASES = [((9, 9), (4, 4)), ((8, 8), (4, 4)), ((7, 12), (1, 9)), ((5, 6), (0, 5)), ((1, 1), (0, 0))]


def random_map(height: int, width: int, seed: int = 0) -> Map:
    return np.random.default_rng(seed).exponential(size=(height, width)) ** 3


def window_mass(m: Map, centre: tuple[int, int], a: int, b: int) -> tuple[float, float]:
    """Return the mass and the area within a rows and b columns of the centre, pixel by pixel."""
    pixels = [
        m[i, j]
        for i, j in itertools.product(*map(range, m.shape))
        if abs(i - centre[0]) <= a and abs(j - centre[1]) <= b
    ]
    return sum(pixels), len(pixels) / m.size


@pytest.mark.parametrize("share", [0.2, 0.5, 0.99, 1.0])
@pytest.mark.parametrize(("shape", "centre"), CASES)
def test_smallest_windows_are_those_of_a_search_over_all(
    shape: tuple[int, int], centre: tuple[int, int], share: float
) -> None:
    m = random_map(*shape)
    enough = share * m.sum() * (1 - 1e-9)
    i = next(i for i in range(20) if window_mass(m, centre, i, i)[0] >= enough)
    assert smallest_square(m, centre, share) == Area(2 * i + 1, 2 * i + 1, window_mass(m, centre, i, i)[1])
    windows = [window_mass(m, centre, a, b) for a in range(shape[0]) for b in range(shape[1])]
    best = min(area for mass, area in windows if mass >= enough)
    found = smallest_rectangle(m, centre, share)
    assert found.ratio == best
    assert window_mass(m, centre, found.height // 2, found.width // 2)[0] >= enough


def test_published_areas_are_strict_and_start_at_side_three() -> None:
    m = np.zeros((8, 8))
    m[4, 4] = 1.0
    assert published_areas(m)[0.2] == Area(3, 3, 9 / 64)
    m[0, 0] = 1.0  # the script's largest square, 1 to 7, does not reach it: it stops, here the answer is the whole map
    assert published_areas(m, (0.49, 0.5)) == {0.49: Area(3, 3, 9 / 64), 0.5: Area(8, 8, 1.0)}
    with pytest.raises(ConfigError, match="square images, got 8 x 6"):
        published_areas(np.ones((8, 6)))
    with pytest.raises(ConfigError, match="no pixel has a positive contribution"):
        published_areas(np.zeros((8, 8)))


def test_profile_and_half_mass_are_those_of_a_loop() -> None:
    m, centre = random_map(9, 13), (3, 8)
    distance = {(i, j): math.dist((i, j), centre) for i, j in itertools.product(range(9), range(13))}
    profile = radial_profile(m, centre)
    for k, value in enumerate(profile):
        ring = [m[p] for p, d in distance.items() if round(d) == k]
        assert value == pytest.approx(np.mean(ring))
    radius = half_mass_radius(m, centre)
    assert sum(m[p] for p, d in distance.items() if d <= radius) >= m.sum() / 2
    assert sum(m[p] for p, d in distance.items() if d < radius) < m.sum() / 2


def test_half_mass_of_a_gaussian_is_the_known_one() -> None:
    y, x = np.ogrid[-100:101, -100:101]
    m = np.exp(-(y**2 + x**2) / (2 * 20.0**2))
    assert half_mass_radius(m, (100, 100)) == pytest.approx(20 * math.sqrt(2 * math.log(2)), abs=0.5)
    side = smallest_square(m, (100, 100), 0.5).height
    assert side == pytest.approx(2 * 20 * 1.0505, abs=2)  # erf(a / sqrt 2)^2 = 1/2 at a = 1.0505


def test_shares_of_pixels_are_counted() -> None:
    m = np.array([[1.0, 1e-2, 1e-3, 9e-4], [0.0, 0.0, 0.0, 1e-30]])
    assert coverage(m) == 2 / 8
    assert support(m) == 5 / 8


@pytest.mark.parametrize(
    ("draw", "long", "crossed"),
    [
        (lambda y, x: (y == 0) | (x == 0), 0, 1),
        (lambda y, x: abs(y) == abs(x), 0, -1),
        (lambda y, x: y + 0 * x == 0, 1, 1),
        (lambda y, x: y == x, 1, -1),
        (lambda y, x: np.exp(-(y**2 + x**2) / 50.0), 0, 0),
        (lambda y, x: 0 * (y + x) + 1, 0, 0),
    ],
    ids=["upright cross", "diagonal cross", "line", "diagonal", "round", "everywhere"],
)
def test_anisotropy_knows_lines_and_crosses_of_strips(draw, long: float, crossed: float) -> None:
    y, x = np.ogrid[-40:41, -40:41]
    m = draw(y, x).astype(np.float64)
    assert elongation(m, (40, 40)) == pytest.approx(long, abs=0.02)
    assert strips(m, (40, 40)) == pytest.approx(crossed, abs=0.02)


def test_a_map_of_one_pixel_has_no_direction() -> None:
    m = np.zeros((5, 5))
    m[2, 2] = 1.0
    assert elongation(m, (2, 2)) == strips(m, (2, 2)) == 0.0


def test_mass_outside_an_object_is_what_is_not_inside() -> None:
    m = random_map(6, 6)
    inside = np.zeros((6, 6), dtype=bool)
    inside[1:4, 2:5] = True
    assert share_outside(m, inside) == pytest.approx(1 - m[1:4, 2:5].sum() / m.sum())
    assert math.isnan(share_outside(np.zeros((6, 6)), inside))
    with pytest.raises(ConfigError, match=r"mask is \(5, 6\)"):
        share_outside(m, inside[:5])


@pytest.mark.parametrize("share", [0.0, -1.0, 1.01, math.nan])
def test_impossible_shares_and_centres_are_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="must lie above 0"):
        smallest_square(np.ones((3, 3)), (1, 1), share)
    with pytest.raises(ConfigError, match="outside the image of 3 x 3"):
        smallest_rectangle(np.ones((3, 3)), (3, 1), 0.5)
