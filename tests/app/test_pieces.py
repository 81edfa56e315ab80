"""Our own HTML: everything that comes from outside is escaped, numbers are short and right."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image

from fullfield.app.pieces import count, data_uri, render


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (1234, "1.23 k"),
        (12345, "12.3 k"),
        (123456, "123 k"),
        (999_499, "999 k"),
        (999_600, "1.00 M"),
        (10_720_000, "10.7 M"),
        (1_927_000_000, "1.93 G"),
        (7 * 10**12, "7.00 T"),
    ],
)
def test_counts_have_three_figures(number: int, text: str) -> None:
    assert count(number) == text


def test_names_of_classes_and_models_are_escaped() -> None:
    html = render(
        "shares", model="<script>1</script>", how="<i>", what="classes", rows=[("<img src=x>", 0.5)], trained=True
    )
    assert "<script>" not in html
    assert "<img" not in html
    assert "&lt;img src=x&gt;" in html


def test_bar_is_as_long_as_the_share_and_the_share_is_written_too() -> None:
    html = render("shares", model="m", how="h", what="classes", rows=[("cat", 0.123), ("dog", 0.0)], trained=True)
    assert "width: 12.30%" in html
    assert "12.3 %" in html
    assert "Random weights" not in html
    assert "Random weights" in render("shares", model="m", how="h", what="w", rows=[], trained=False)


def test_problem_is_an_alert_that_is_escaped() -> None:
    assert render("problem", sentence="<b>x").strip() == '<p class="ff-problem" role="alert">&lt;b&gt;x</p>'


def test_data_uri_holds_the_picture() -> None:
    image = Image.new("RGB", (3, 2), (1, 2, 3))
    uri = data_uri(image)
    prefix = "data:image/png;base64,"
    assert uri.startswith(prefix)
    with Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(prefix)))) as read:
        assert (read.size, read.getpixel((0, 0))) == ((3, 2), (1, 2, 3))
    assert data_uri(b"abc") == prefix + "YWJj"
