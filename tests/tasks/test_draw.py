"""Drawn predictions, checked by their pixels: where the picture lies, how long the bars are, what stays clear."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageColor

from fullfield.errors import ConfigError, ImageError
from fullfield.tasks import draw
from fullfield.tasks.draw import draw_prediction, percent

NAN = float("nan")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def count_in_longest_row(drawn: Image.Image, colour: str) -> int:
    same = (pixels(drawn) == ImageColor.getrgb(colour)).all(axis=-1)
    return int(same.sum(axis=1).max())


def colours(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("width", [96, 200, 480, 1000])
@pytest.mark.parametrize("size", [(300, 200), (200, 300), (1, 1), (3000, 20), (7, 5)])
def test_result_has_the_width_asked_for(size: tuple[int, int], width: int):
    drawn = draw_prediction(colours(*size), [("cat", 0.9), ("dog", 0.1)], width=width)
    assert drawn.mode == "RGB"
    assert drawn.width == width


def test_picture_keeps_its_aspect_and_is_returned_alone_without_labels():
    assert draw_prediction(colours(300, 200), [], width=480).size == (480, 320)
    assert draw_prediction(colours(200, 300), [], width=480).size == (480, 720)


@pytest.mark.parametrize(("size", "expected"), [((1, 2000), (480, 720)), ((2000, 1), (480, 120))])
def test_extreme_shapes_are_letterboxed_in_the_middle(size: tuple[int, int], expected: tuple[int, int]):
    drawn = draw_prediction(Image.new("RGB", size, "red"), [], width=480)
    assert drawn.size == expected
    rows, columns = np.nonzero((pixels(drawn) == (255, 0, 0)).all(axis=-1))
    assert rows.size
    assert abs(rows.min() + rows.max() + 1 - drawn.height) <= 1
    assert abs(columns.min() + columns.max() + 1 - drawn.width) <= 1


def test_tiny_images_are_enlarged_without_new_colours():
    tiny = colours(8, 6)
    drawn = draw_prediction(tiny, [], width=480)
    np.testing.assert_array_equal(pixels(drawn), pixels(tiny).repeat(60, axis=0).repeat(60, axis=1))


def test_bars_are_as_long_as_the_probability():
    drawn = draw_prediction(colours(300, 200), [("cat", 0.75)], width=480)
    room = 480 - 2 * 16
    assert count_in_longest_row(drawn, "#1f5fbf") == pytest.approx(0.75 * room, abs=3)
    certain = draw_prediction(colours(300, 200), [("cat", 1.0)], width=480)
    assert count_in_longest_row(certain, "#1f5fbf") == pytest.approx(room, abs=3)
    impossible = draw_prediction(colours(300, 200), [("cat", 0.0)], width=480)
    assert count_in_longest_row(impossible, "#1f5fbf") == 0


def test_at_most_five_labels_are_drawn():
    labels = [(f"class {i}", 0.2) for i in range(9)]
    heights = [draw_prediction(colours(30, 30), labels[:n]).height for n in range(10)]
    steps = np.diff(heights)
    assert (steps[:5] > 0).all()
    assert (steps[5:] == 0).all()


def test_long_names_end_in_an_ellipsis_before_the_percentage():
    long = draw_prediction(colours(300, 200), [("W" * 500, 0.5)], width=480)
    short = draw_prediction(colours(300, 200), [("W", 0.5)], width=480)
    # From the right edge to before the percentage nothing may differ: the name never runs into it.
    text = slice(320, 345)
    np.testing.assert_array_equal(pixels(long)[text, 425:], pixels(short)[text, 425:])
    assert (pixels(long)[text, 300:400] != 255).any()
    font = draw.bundled_font(16)
    shortened = draw.shorten("a rather long name", font, 80)
    assert shortened.endswith("…")
    assert "a rather long name".startswith(shortened[:-1])
    assert font.getlength(shortened) <= 80
    assert draw.shorten("cat", font, 80) == "cat"


@pytest.mark.parametrize(
    "name",
    ["Größe, Ørsted, naïve", "кошка", "日本語", "עברית", "😀", "", " ", "a\nb\tc", "\x00", "caf\udce9", "e\u0301"],
)
def test_any_name_can_be_drawn(name: str):
    plain = draw_prediction(colours(30, 30), [("cat", 0.5)])
    assert draw_prediction(colours(30, 30), [(name, 0.5)]).size == plain.size


def test_without_a_font_for_them_accents_are_dropped_and_other_letters_are_question_marks(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(draw, "_other_fonts", lambda _size: ())
    assert draw.typeset("Café\u00a0Größe", 16)[0] == "Cafe Gro?e"
    assert draw.typeset("日本 cat", 16)[0] == "?? cat"


def test_accented_letters_are_drawn_where_matplotlib_brings_a_font():
    pytest.importorskip("matplotlib")
    text, font = draw.typeset("Größe", 16)
    assert text == "Größe"
    assert not draw._missing(text, font)


@pytest.mark.parametrize("probability", [NAN, -0.5, 1.5, float("inf")])
def test_probabilities_out_of_range_keep_the_bar_inside_the_panel(probability: float):
    drawn = draw_prediction(colours(30, 30), [("cat", probability)], width=480)
    assert (pixels(drawn)[485:, -10:] == 255).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_other_modes_are_drawn_and_the_picture_is_left_as_it_was(mode: str):
    image = colours(40, 30).convert(mode)
    before = image.tobytes()
    assert draw_prediction(image, [("cat", 0.5)]).mode == "RGB"
    assert image.mode == mode
    assert image.tobytes() == before


def test_unusable_arguments_are_refused():
    with pytest.raises(ConfigError, match=r"width 95 .* at least 96"):
        draw_prediction(colours(30, 30), [], width=95)
    with pytest.raises(ImageError, match="0 × 5"):
        draw_prediction(Image.new("RGB", (0, 5)), [])


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.8432, "84.3 %"),
        (1.0, "100.0 %"),
        (0.99996, "> 99.9 %"),
        (0.0, "0.0 %"),
        (0.0001, "< 0.1 %"),
        (NAN, "–"),
        (float("inf"), "–"),
    ],
)
def test_percent_is_exact_at_both_ends(share: float, text: str):
    assert percent(share) == text
