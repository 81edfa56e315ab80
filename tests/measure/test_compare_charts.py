"""Charts as numbers: axes hold all points, positions give the figures back, and numbers do not hide each other."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest

from fullfield.measure.compare_charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, Panel, Point, chart, panels
from tests.measure.comparison import full_model, made_up


def of(*pairs: tuple[float, float]) -> Chart:
    points = tuple(Point(number, f"model {number}", x, y) for number, (x, y) in enumerate(pairs, 1))
    return chart(Panel("heading", "x", "y", points))


def value(position: float, ticks: tuple[tuple[float, str], ...]) -> float:
    (start, first), (end, last) = ticks[0], ticks[-1]
    return float(first) + (position - start) / (end - start) * (float(last) - float(first))


@pytest.mark.parametrize(
    "pairs",
    [
        [(0.9, 75.1), (4.5, 82.9), (8.7, 83.4)],
        [(1.0, 80.0)],
        [(2.0, 50.0), (2.0, 50.0)],
        [(1e-6, 3.0), (2e-6, 1e5)],
        [(0.0, 0.0)],
        [(4.4999, 82.0), (4.5001, 82.1)],
    ],
    ids=str,
)
def test_positions_give_the_figures_back(pairs: list[tuple[float, float]]) -> None:
    drawn = of(*pairs)
    for mark, (x, y) in zip(drawn.marks, pairs, strict=True):
        assert LEFT <= mark.x <= RIGHT
        assert TOP <= mark.y <= BOTTOM
        span_x = float(drawn.x_ticks[-1][1]) - float(drawn.x_ticks[0][1])
        span_y = float(drawn.y_ticks[-1][1]) - float(drawn.y_ticks[0][1])
        assert value(mark.x, drawn.x_ticks) == pytest.approx(x, abs=1e-6 * span_x)
        assert value(mark.y, drawn.y_ticks) == pytest.approx(y, abs=1e-6 * span_y)
    for ticks in (drawn.x_ticks, drawn.y_ticks):
        assert 2 <= len(ticks) <= 7
        steps = [b - a for (a, _), (b, _) in itertools.pairwise(ticks)]
        assert steps == pytest.approx([steps[0]] * len(steps))


def test_numbers_stay_inside_and_apart() -> None:
    generator = random.Random(0)
    for _ in range(50):
        drawn = of(*[(generator.uniform(0, 10), generator.uniform(60, 90)) for _ in range(8)])
        texts = [(mark.text_x, mark.text_y) for mark in drawn.marks]
        assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in texts)
        nearest = min(math.dist(a, b) for i, a in enumerate(texts) for b in texts[:i])
        assert nearest > 5  # half a digit


def test_points_at_one_place_have_their_numbers_at_different_ones() -> None:
    drawn = of(*[(1.0, 1.0)] * 6)
    assert len({(round(m.text_x), round(m.text_y)) for m in drawn.marks}) == 6


def test_accuracy_is_drawn_where_it_is_known_and_only_there() -> None:
    known, unknown = full_model("known", 4), full_model("unknown", 8, accuracy=None)
    shown = panels(made_up((known, unknown)))
    assert [panel.heading for panel in shown] == ["Accuracy and MACs", "Accuracy and throughput"]
    assert all([(point.number, point.label) for point in panel.points] == [(1, "known")] for panel in shown)
    assert known.accuracy is not None
    assert shown[0].points[0].y == pytest.approx(100 * known.accuracy.top1)
    (only,) = panels(made_up((replace(known, accuracy=None), unknown)))
    assert only.heading == "Throughput and MACs"
    assert [point.number for point in only.points] == [1, 2]
    assert panels(made_up((replace(known, throughput=None, accuracy=None),))) == ()
