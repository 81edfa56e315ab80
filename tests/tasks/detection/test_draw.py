"""Drawn detections, checked by their pixels: where boxes and masks lie, what names cover, what stays clear."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fullfield.data.detection.outlines import mask_to_rle
from fullfield.errors import ConfigError, ImageError
from fullfield.tasks.detection import draw
from fullfield.tasks.detection.coco_form import Detection
from fullfield.tasks.detection.draw import class_colour, draw_detections

pytest.importorskip("faster_coco_eval", reason="needs fullfield[detect]")

NAN = float("nan")


def one(box: Any, label: int = 0, *, score: float = 0.9, name: str = "cell", mask: Any = None) -> Detection:
    return Detection(name, label, score, box, None if mask is None else mask_to_rle(mask))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def of_colour(drawn: Image.Image, label: int) -> np.ndarray:
    return (pixels(drawn) == class_colour(label)).all(axis=-1)


def grid(count: int, side: int = 640) -> list[Detection]:
    """So many boxes over a square picture."""
    across = int(np.ceil(np.sqrt(count)))
    step = side / across
    corners = [(step * (i % across), step * (i // across)) for i in range(count)]
    return [
        one((x + 1, y + 1, x + 0.8 * step, y + 0.8 * step), score=0.5 + i / 1000) for i, (x, y) in enumerate(corners)
    ]


def labels_of(monkeypatch: pytest.MonkeyPatch, image: Image.Image, objects: list[Detection]) -> list[Any]:
    """The rectangles that names were written into."""
    found: list[Any] = []
    original = draw._draw_name

    def note(*arguments: Any) -> None:
        original(*arguments)
        found[:] = arguments[-1]

    monkeypatch.setattr(draw, "_draw_name", note)
    draw_detections(image, objects)
    return found


def test_boxes_lie_where_the_objects_are() -> None:
    drawn = draw_detections(Image.new("RGB", (640, 480)), [one((100.0, 200.0, 300.0, 400.0), 1)])
    assert drawn.size == (640, 480)
    there = of_colour(drawn, 1)
    assert there[300, 100] and there[300, 300] and there[400, 200] and there[200, 280]  # noqa: PT018 - the four edges
    assert not there[210:390, 110:290].any()
    assert not there[:, :95].any()
    assert not there[410:].any()


@pytest.mark.parametrize(
    ("size", "width", "expected"),
    [
        ((640, 480), None, (640, 480)),
        ((320, 240), None, (640, 480)),
        ((256, 512), None, (320, 640)),
        ((3200, 1600), None, (1600, 800)),
        ((320, 240), 160, (160, 120)),
        ((10, 1000), 100, (4, 400)),
        ((1000, 1), 200, (200, 1)),
        ((1, 1), None, (640, 640)),
    ],
)
def test_picture_keeps_its_shape(size: tuple[int, int], width: int | None, expected: tuple[int, int]) -> None:
    assert draw_detections(Image.new("RGB", size), [], width=width).size == expected
    drawn = draw_detections(Image.new("L", size), [one((0.0, 0.0, *size))], width=width)  # type: ignore[arg-type]
    assert drawn.mode == "RGB"
    assert drawn.width == expected[0]


def test_boxes_are_scaled_with_the_picture() -> None:
    drawn = draw_detections(Image.new("RGB", (200, 100)), [one((50.0, 25.0, 150.0, 75.0))], width=800)
    rows, columns = np.nonzero(of_colour(drawn, 0)[200:, :])
    assert abs(columns.min() - 200) <= 1
    assert abs(columns.max() - 600) <= 1
    assert abs(rows.max() + 200 - 300) <= 1


def test_masks_tint_their_pixels_alone_and_the_picture_shows_through() -> None:
    image = Image.fromarray(np.tile(np.arange(640, dtype=np.uint8)[None, :, None] // 4, (480, 1, 3)))
    mask = np.zeros((480, 640), bool)
    mask[200:300, 300:400] = True
    drawn = pixels(draw_detections(image, [one((300.0, 200.0, 400.0, 300.0), 1, mask=mask)]))
    plain = pixels(image)
    inside = drawn[220:280, 320:380]
    assert (inside != plain[220:280, 320:380]).any(axis=-1).all()
    expected = 0.58 * plain[220:280, 320:380] + 0.42 * np.array(class_colour(1))
    assert np.abs(inside - expected).max() <= 1
    np.testing.assert_array_equal(drawn[310:], plain[310:])
    np.testing.assert_array_equal(drawn[:, :290], plain[:, :290])


def test_mask_at_the_edge_of_a_resized_picture_stays_in_its_place() -> None:
    mask = np.zeros((90, 70), bool)
    mask[60:, 50:] = True
    objects = [one((50.0, 60.0, 70.0, 90.0), 2, mask=mask)]
    drawn = draw_detections(Image.new("RGB", (70, 90)), objects, width=333)
    tinted = pixels(drawn).any(axis=-1)
    scale = 333 / 70
    assert tinted[int(62 * scale) :, int(52 * scale) :].all()
    assert not tinted[: int(50 * scale)].any()


def test_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="mask of 'cell' has 5 × 7 pixels and the image 480 × 640"):
        draw_detections(Image.new("RGB", (640, 480)), [one((0.0, 0.0, 5.0, 5.0), mask=np.ones((5, 7), bool))])


def test_empty_mask_is_drawn_as_its_box() -> None:
    drawn = draw_detections(
        Image.new("RGB", (640, 480)), [one((9.0, 9.0, 99.0, 99.0), mask=np.zeros((480, 640), bool))]
    )
    assert of_colour(drawn, 0).any()


def contrast(first: tuple[int, int, int], second: tuple[int, int, int]) -> float:
    """WCAG 2.1's contrast ratio, 1 to 21."""
    lights = []
    for colour in (first, second):
        c = np.array(colour) / 255
        lights.append(float(np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]))
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_text_is_legible_on_the_ground_of_every_class() -> None:
    assert min(contrast(class_colour(label), draw._opposite(class_colour(label))) for label in range(200)) > 4.0


@pytest.mark.parametrize("ground", [(0, 0, 0), (255, 255, 255), *(class_colour(i) for i in (0, 2, 5))])
def test_boxes_and_names_are_seen_on_any_ground(ground: tuple[int, int, int]) -> None:
    drawn = pixels(draw_detections(Image.new("RGB", (640, 480), ground), [one((100.0, 100.0, 300.0, 300.0))]))
    row = [tuple(colour) for colour in drawn[250, 80:120].tolist()]
    assert max(contrast(ground, colour) for colour in row) > 3.0
    name = drawn[60:100, 100:180].reshape(-1, 3).tolist()
    grounds = [tuple(colour) for colour in name if tuple(colour) == class_colour(0)]
    inks = [tuple(colour) for colour in name if contrast(tuple(colour), class_colour(0)) > 4.0]  # type: ignore[arg-type]
    assert len(grounds) > 100
    assert len(inks) > 50


def test_classes_have_colours_of_their_own() -> None:
    colours = [class_colour(label) for label in range(100)]
    assert len(set(colours)) == 100
    first = draw._cielab(np.array(colours[:20]))
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(first, 2)) > 20  # 2.3 is just noticed
    assert class_colour(100_000) in {class_colour(label) for label in range(400)}


def test_cielab_of_primaries_is_the_published() -> None:
    given = np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 0, 255]])
    known = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]]
    np.testing.assert_allclose(draw._cielab(given), known, atol=0.05)


@pytest.mark.parametrize("count", [1, 12, 30, 31, 120, 400])
def test_names_stay_in_the_picture_and_do_not_cover_each_other(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.new("RGB", (640, 640))
    spots = labels_of(monkeypatch, image, grid(count))
    side = 640 if count <= 30 else 1280
    assert all(s.left >= 0 and s.top >= 0 and s.right <= side and s.bottom <= side for s in spots)
    assert not any(a.meets(b) for a, b in itertools.combinations(spots, 2))
    assert len(spots) == count or count > 120


@pytest.mark.parametrize(
    "box", [(0, 0, 30, 30), (620, 0, 640, 20), (0, 460, 20, 480), (600, 440, 640, 480), (0, 0, 640, 480)]
)
def test_name_of_an_object_in_a_corner_is_written_inside(box: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (spot,) = labels_of(monkeypatch, Image.new("RGB", (640, 480)), [one(box, name="a rather long name of a class")])
    assert spot.left >= 0
    assert spot.top >= 0
    assert spot.right <= 640
    assert spot.bottom <= 480


def test_crowd_leaves_most_of_the_picture_as_it_was() -> None:
    image = Image.new("RGB", (1280, 1280), (90, 90, 90))
    drawn = pixels(draw_detections(image, grid(225, side=1280)))[:1280]
    assert (drawn != 90).any(axis=-1).mean() < 0.2


def test_crowd_has_a_key_below_the_picture() -> None:
    objects = [*grid(100), one((0.0, 0.0, 640.0, 640.0), 1, name="rod")]
    drawn = draw_detections(Image.new("RGB", (640, 640)), objects)
    assert drawn.width == 1280
    assert drawn.height > 1280
    key = drawn.crop((0, 1280, drawn.width, drawn.height))
    assert of_colour(key, 0).sum() == pytest.approx(of_colour(key, 1).sum())
    assert of_colour(key, 0).any()
    few = draw_detections(Image.new("RGB", (640, 640)), grid(9))
    assert few.size == (640, 640)


def test_key_of_many_classes_has_several_rows() -> None:
    objects = [one((0.0, 0.0, 9.0, 9.0), label, name=f"a class with number {label}") for label in range(60)]
    drawn = draw_detections(Image.new("RGB", (640, 100)), objects, width=320)
    key = drawn.crop((0, 50, 320, drawn.height))
    assert all(of_colour(key, label).sum() > 50 for label in range(60))


def test_score_that_is_nan_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    image, box = Image.new("RGB", (640, 480)), (100.0, 100.0, 200.0, 200.0)
    (annotated,) = labels_of(monkeypatch, image, [one(box, score=NAN)])
    (predicted,) = labels_of(monkeypatch, image, [one(box, score=0.5)])
    assert annotated.right < predicted.right


@pytest.mark.parametrize("box", [(NAN, 0, 9, 9), (0, 0, float("inf"), 9), (9, 9, 2, 2)])
def test_impossible_box_is_not_drawn(box: Any) -> None:
    assert not pixels(draw_detections(Image.new("RGB", (640, 480)), [one(box)])).any()


@pytest.mark.parametrize("box", [(-50.0, -50.0, 900.0, 900.0), (5.0, 5.0, 5.0, 5.0), (700.0, 500.0, 800.0, 600.0)])
def test_box_beyond_the_picture_does_no_harm(box: Any) -> None:
    assert draw_detections(Image.new("RGB", (640, 480)), [one(box)]).size == (640, 480)


@pytest.mark.parametrize("name", ["", "Zelle größer", "細胞", "a\nb\tc", "x" * 400, "\udce9"])
@pytest.mark.parametrize("count", [1, 40])
def test_any_name_can_be_drawn(name: str, count: int) -> None:
    objects = [one((10.0 * i, 100.0, 10.0 * i + 90, 200.0), name=name) for i in range(count)]
    assert pixels(draw_detections(Image.new("RGB", (640, 480)), objects)).any()


def test_impossible_pictures_are_refused() -> None:
    with pytest.raises(ConfigError, match="width 20 are illegible; use at least 96"):
        draw_detections(Image.new("RGB", (640, 480)), [], width=20)
    with pytest.raises(ImageError, match="0 × 5 pixels cannot be drawn"):
        draw_detections(Image.new("RGB", (0, 5)), [])
