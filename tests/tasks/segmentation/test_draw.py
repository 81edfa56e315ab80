"""Drawn segmentations: colours where they belong, a legend of what occurs, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from fullfield.errors import ConfigError, DataError
from fullfield.tasks.segmentation.draw import class_shares, draw_segmentation, paint_labels
from tests.tasks.segmentation.fakes import CLASSES, COLOURS, halves

GREY = Image.new("RGB", (200, 100), (100, 100, 100))


def test_a_class_tints_its_place_by_the_opacity() -> None:
    sheet = np.asarray(draw_segmentation(GREY, halves(100, 200, 0, 2), CLASSES, COLOURS, width=200, opacity=0.5))
    assert sheet[50, 50].tolist() == pytest.approx([177.5, 50, 50], abs=1)
    assert sheet[50, 150].tolist() == pytest.approx([50, 50, 177.5], abs=1)


def test_pixels_without_a_class_are_left_as_they_are() -> None:
    sheet = np.asarray(draw_segmentation(GREY, halves(100, 200, 255, 2), CLASSES, COLOURS, width=200))
    assert sheet[50, 50].tolist() == [100, 100, 100]


def test_opacity_0_is_the_picture_alone() -> None:
    sheet = np.asarray(draw_segmentation(GREY, halves(100, 200, 0, 2), CLASSES, COLOURS, width=200, opacity=0))
    assert (sheet[:100] == 100).all()


def test_the_legend_grows_with_the_classes_that_occur_and_shows_their_colours() -> None:
    names = [f"class {i}" for i in range(40)]
    colours = [(5 * i, 255 - 5 * i, 90) for i in range(40)]
    heights = []
    for occurring in (1, 12, 40):
        labels = np.resize(np.arange(occurring), (100, 200))
        sheet = draw_segmentation(GREY, labels, names, colours, width=400, opacity=0)
        heights.append(sheet.height)
        swatches = {tuple(pixel) for pixel in np.asarray(sheet)[200:].reshape(-1, 3).tolist()} & set(colours)
        assert len(swatches) == min(occurring, 30)
    assert heights == sorted(set(heights))


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (3, 4)], ids=str)
def test_pictures_of_extreme_shape_are_drawn(size: tuple[int, int]) -> None:
    sheet = draw_segmentation(Image.new("L", size), np.zeros(size[::-1], np.int64), ["名前 " * 20], [(9, 9, 9)])
    assert sheet.width == 720
    assert sheet.height < 3 * 720
    assert sheet.mode == "RGB"


def test_shares_count_pixels_and_leave_out_what_has_no_class() -> None:
    labels = np.array([[0, 0, 2, 255]], np.uint8)
    assert class_shares(labels, 3).tolist() == [0.5, 0, 0.25]


def test_painting_looks_up_each_labels_colour() -> None:
    labels = np.array([[0, 2], [1, 255]], np.uint8)
    expected = [[[255, 0, 0], [0, 0, 255]], [[0, 255, 0], [0, 0, 0]]]
    assert paint_labels(labels, COLOURS).tolist() == expected


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"width": 100}, ConfigError, "width 100 is illegible"),
        ({"opacity": 1.5}, ConfigError, "opacity is 1.5"),
        ({"colours": COLOURS[:2]}, ConfigError, "3 classes need as many colours, not 2"),
        ({"labels": halves(200, 100, 0, 1)}, DataError, "100 x 200 pixels can't be laid over a picture of 200 x 100"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"image": GREY, "labels": halves(100, 200, 0, 1), "classes": CLASSES, "colours": COLOURS} | arguments
    with pytest.raises(error, match=message):
        draw_segmentation(**given)
