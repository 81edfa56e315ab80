"""The pictures of a report: the text of the SVG, and the pixels of the PNG against the matrix they show."""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image

from fullfield.train import plots

NAN = float("nan")


def test_curves_take_their_colours_from_the_page_and_repeat_exactly():
    def draw(name: str) -> str:
        svg = plots.curves_svg([1, 2, 3], {"a": [1, 2, 3], "b": [3, 2, 1]}, name=name, description='<"both">')
        assert svg is not None
        return svg

    svg = draw("one")
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert "font-family" not in svg
    assert {"currentColor", "var(--line)", "var(--series-1)", "var(--series-2)"} <= set(
        re.findall(r"currentColor|var\([^)]*\)", svg)
    )
    assert re.match(r'<svg [^<>]*role="img" aria-label="&lt;&quot;both&quot;&gt;"[^<>]*>', svg)
    assert svg.endswith("</svg>")
    assert draw("one") == svg
    ids = re.compile(r' id="([^"]*)"')
    assert not set(ids.findall(svg)) & set(ids.findall(draw("two")))


def test_a_gap_splits_the_curve_and_lone_points_are_marked():
    def draw(values: list[float]) -> str:
        svg = plots.curves_svg(range(len(values)), {"a": values}, name="a", description="a")
        assert svg is not None
        return svg

    def strokes(svg: str) -> int:
        # Of the paths only the curve has both the series' colour and the axes' clipping.
        (curve,) = re.findall(r'<path d="([^"]*)" clip-path="[^"]*" style="[^"]*var\(--series-1\)', svg)
        return int(curve.count("M"))

    assert strokes(draw([1.0, 2.0, 3.0, 4.0])) == 1
    assert strokes(draw([1.0, 2.0, NAN, 3.0, 4.0])) == 2
    marks = draw([1.0] * 60 + [NAN, 2.0, NAN] + [1.0] * 60).count("<use ")
    # The legend's mark is there in both; that of the lone point only in the first.
    assert marks == draw([1.0] * 123).count("<use ") + 1


def test_curves_without_a_finite_value_are_not_drawn():
    assert plots.curves_svg([], {"a": []}, name="a", description="a") is None
    assert plots.curves_svg([1, 2], {"a": [NAN, float("inf")]}, name="a", description="a") is None


def test_confusion_picture_is_blue_where_right_orange_where_wrong_and_clear_elsewhere():
    confusion = np.zeros((30, 30), dtype=np.int64)
    np.fill_diagonal(confusion, 9)
    confusion[4, 20] = 1
    confusion[7] = 0
    data, k = plots.confusion_png(confusion)
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")).astype(int)
    assert k == 1
    assert pixels.shape == (630, 630, 4)
    cells = pixels[10::21, 10::21]
    red, blue, alpha = cells[..., 0], cells[..., 2], cells[..., 3]
    np.testing.assert_array_equal(alpha > 0, confusion > 0)
    assert (blue > red)[np.diag(confusion) > 0, np.diag(confusion) > 0].all()
    assert red[4, 20] > blue[4, 20]
    assert alpha[4, 20] < alpha[4, 4] < alpha[0, 0] == 255


def test_a_single_confusion_among_a_thousand_classes_is_seen():
    confusion = np.zeros((1000, 1000), dtype=np.int64)
    np.fill_diagonal(confusion, 99)
    confusion[999, 1] = 1
    data, k = plots.confusion_png(confusion)
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
    assert k == 4
    assert pixels.shape == (500, 500, 4)
    assert (pixels[-2:, :2, 3] > 50).all()
    assert not pixels[:2, -2:, 3].any()
