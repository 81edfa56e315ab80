"""The charts of a comparison as numbers: which panels there are, and where their axes, points and labels lie.

`compare_plot.py` draws the panels to a file; the page draws them as inline SVG, where text and colours are the page's
own and small screens stay legible, so a point carries its model's number and not its name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fullfield.measure.compare_result import Compared, Comparison

__all__ = ["Chart", "Mark", "Panel", "Point", "chart", "panels"]

WIDTH, HEIGHT = 400.0, 270.0  # of a chart, in its own units
LEFT, RIGHT, TOP, BOTTOM = 44.0, 388.0, 14.0, 222.0  # of its axes
AWAY = 11.0  # from a point to the middle of its number
TICKS = 5


@dataclass(frozen=True)
class Point:
    """One model in one panel."""

    number: int
    """Place of the model in the comparison, from 1."""
    label: str
    x: float
    y: float


@dataclass(frozen=True)
class Panel:
    """What one chart shows."""

    heading: str
    x_label: str
    y_label: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Mark:
    """A point in a chart's own units; y counts downwards."""

    point: Point
    x: float
    y: float
    text_x: float
    """Middle of the number beside it."""
    text_y: float


@dataclass(frozen=True)
class Chart:
    """A panel laid out for an SVG element with the view box (0, 0, `WIDTH`, `HEIGHT`)."""

    panel: Panel
    x_ticks: tuple[tuple[float, str], ...]
    """Position and text."""
    y_ticks: tuple[tuple[float, str], ...]
    marks: tuple[Mark, ...]


def panels(comparison: Comparison) -> tuple[Panel, ...]:
    """Return the panels that a comparison has figures for.

    Accuracy over MACs and over throughput; without any accuracy, throughput over MACs. A model that lacks one of a
    panel's two figures is not in it, and a panel without models is left out.
    """
    wanted = [("macs", "images_per_s")]
    if any(model.accuracy is not None for model in comparison.models):
        wanted = [("macs", "top1"), ("images_per_s", "top1")]
    words = {
        "macs": ("MACs", "MACs for one image, G"),
        "top1": ("Accuracy", "top-1 accuracy, %"),
        "images_per_s": ("throughput", f"images/s, {comparison.budget.batch} images a call"),
    }
    found = []
    for x, y in wanted:
        pairs = [(_figure(model, x), _figure(model, y)) for model in comparison.models]
        points = tuple(
            Point(number, model.label, px, py)
            for number, (model, (px, py)) in enumerate(zip(comparison.models, pairs, strict=True), 1)
            if px is not None and py is not None
        )
        if points:
            heading = f"{words[y][0].capitalize()} and {words[x][0]}"
            found.append(Panel(heading, words[x][1], words[y][1], points))
    return tuple(found)


def _figure(model: Compared, name: str) -> float | None:
    if name == "macs":
        return None if model.cost is None else model.cost.cost.macs / 1e9
    if name == "top1":
        return None if model.accuracy is None else 100 * model.accuracy.top1
    return None if model.throughput is None else model.throughput.images_per_s


def chart(panel: Panel) -> Chart:
    """Lay a panel out.

    Args:
        panel: With at least one point.
    """
    x_ticks, y_ticks = _ticks([p.x for p in panel.points]), _ticks([p.y for p in panel.points])

    def place(value: float, ticks: Sequence[float], start: float, end: float) -> float:
        return start + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (end - start)

    dots = [(place(p.x, x_ticks, LEFT, RIGHT), place(p.y, y_ticks, BOTTOM, TOP)) for p in panel.points]
    texts = _beside(dots)
    return Chart(
        panel,
        tuple((place(tick, x_ticks, LEFT, RIGHT), f"{tick:g}") for tick in x_ticks),
        tuple((place(tick, y_ticks, BOTTOM, TOP), f"{tick:g}") for tick in y_ticks),
        tuple(Mark(p, *dot, *text) for p, dot, text in zip(panel.points, dots, texts, strict=True)),
    )


def _ticks(values: Sequence[float]) -> list[float]:
    """Return round numbers at equal steps, the first below all values and the last above."""
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(abs(high), 1.0):
        margin = 0.1 * abs(high) or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / (TICKS - 1)
    size = 10.0 ** math.floor(math.log10(rough))
    step = size * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * size >= rough * (1 - 1e-9))
    first, last = math.floor(low / step), math.ceil(high / step)
    return [float(f"{index * step:.6g}") for index in range(first, last + 1)]


def _beside(dots: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Place a number beside each dot, as far from the other dots and numbers as it can be; the right side if free."""
    texts: list[tuple[float, float]] = []
    for index, (x, y) in enumerate(dots):
        others = [*dots[:index], *dots[index + 1 :], *texts]
        corners = [(AWAY * math.cos(angle), AWAY * math.sin(angle)) for angle in (k * math.pi / 4 for k in range(8))]
        free = [(x + dx, y - dy) for dx, dy in corners if x + dx < WIDTH - 6 and TOP - 8 < y - dy < BOTTOM + 4]
        distances = [min((math.dist(text, other) for other in others), default=99.0) for text in free]
        # From two letters' distance on, further away is not more legible; the first, on the right, then wins.
        texts.append(max(zip(distances, free, strict=True), key=lambda pair: min(pair[0], 2 * AWAY))[1])
    return texts
