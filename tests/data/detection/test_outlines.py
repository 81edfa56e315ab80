from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fullfield.data.detection.outlines import (
    mask_to_rle,
    outline_area,
    outline_to_mask,
    outline_to_rle,
    rle_runs,
    rle_to_mask,
)
from fullfield.errors import DataError, MissingExtraError

coco_mask = pytest.importorskip("pycocotools.mask", reason="compares with pycocotools, which is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools's own


def random_masks() -> list[NDArray[np.bool_]]:
    rng = np.random.default_rng(0)
    masks = [
        rng.random((h, w)) < share for h, w in ((1, 1), (7, 5), (30, 41), (300, 2)) for share in (0.0, 0.1, 0.9, 1)
    ]
    blob = np.zeros((480, 640), dtype=np.bool_)
    blob[100:400, 3:600] = True
    return [*masks, blob]


def reference_mask(polygons: list[list[float]], height: int, width: int) -> NDArray[np.bool_]:
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))).astype(np.bool_)


def as_outline(polygons: list[list[float]]) -> tuple[NDArray[np.float32], ...]:
    return tuple(np.array(polygon, dtype=np.float32).reshape(-1, 2) for polygon in polygons)


@pytest.mark.parametrize("mask", random_masks(), ids=lambda mask: "x".join(map(str, mask.shape)))
def test_masks_and_rle_are_those_of_pycocotools(mask: NDArray[np.bool_]) -> None:
    official = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    rle = mask_to_rle(mask)
    assert rle == {"size": list(mask.shape), "counts": official["counts"].decode()}
    json.dumps(rle)
    runs = rle_runs(rle).tolist()
    for form in (rle, official, {"size": rle["size"], "counts": runs}):
        np.testing.assert_array_equal(rle_to_mask(form), mask)
        assert outline_area(form) == mask.sum() == coco_mask.area(official)
        assert outline_to_rle(form, *mask.shape) == rle


@pytest.mark.parametrize("decimals", [0, 1, 2])
def test_random_polygons_cover_the_pixels_that_pycocotools_says(decimals: int) -> None:
    # One decimal makes many ties in the rounding to fifths of a pixel, which float32 alone would break.
    rng = np.random.default_rng(decimals)
    for _ in range(60):
        height, width = rng.integers(8, 700, 2).tolist()
        polygons = [
            np.round(rng.uniform(-5, 705, 2 * n), decimals).tolist() for n in rng.integers(3, 9, rng.integers(1, 4))
        ]
        expected = reference_mask(polygons, height, width)
        np.testing.assert_array_equal(outline_to_mask(as_outline(polygons), height, width), expected)


def test_polygons_of_one_object_are_united_not_cut_out() -> None:
    inner, outer = [4, 4, 8, 4, 8, 8, 4, 8], [0, 0, 12, 0, 12, 12, 0, 12]
    mask = outline_to_mask(as_outline([outer, inner]), 20, 20)
    assert mask[:12, :12].all()
    assert mask.sum() == 144


def test_no_polygons_are_an_empty_mask() -> None:
    assert not outline_to_mask((), 5, 6).any()
    assert outline_to_mask((), 5, 6).shape == (5, 6)
    assert outline_area(()) == 0


def test_photographs_outlines_and_areas_are_those_of_their_file(shared_data: Path) -> None:
    polygons_seen = 0
    for split in ("train", "val"):
        content = json.loads((shared_data / "coco_cc" / "annotations" / f"instances_{split}2017.json").read_text())
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        for annotation in content["annotations"][::4]:
            outline, size = annotation["segmentation"], sizes[annotation["image_id"]]
            if isinstance(outline, list):
                polygons_seen += 1
                mask, outline = reference_mask(outline, *size), as_outline(outline)
                assert outline_area(outline) == pytest.approx(annotation["area"], rel=1e-4, abs=0.01)
            else:
                as_rle = coco_mask.frPyObjects(outline, *size) if isinstance(outline["counts"], list) else outline
                mask = coco_mask.decode(as_rle).astype(np.bool_)
            np.testing.assert_array_equal(outline_to_mask(outline, *size), mask)
    assert polygons_seen > 200


@pytest.mark.parametrize(
    "counts",
    [
        *([], [20, 1], [-1, 21], [3, 2], ["a"], None, 7, [[20]], [1e30]),
        *("", "a", "é", "zzzz~~~", b"\xff\x80abc", "oooooooooooooooooooo0", "PPPPPPPPPPPPPPP0"),
    ],
    ids=repr,
)
def test_a_damaged_rle_is_refused(counts: Any) -> None:
    with pytest.raises(DataError, match="RLE"):
        rle_to_mask({"size": [4, 5], "counts": counts})


@pytest.mark.parametrize("rle", [{}, {"size": [4, 5]}, {"size": None, "counts": [20]}, {"size": [20], "counts": [20]}])
def test_an_rle_without_its_parts_is_refused(rle: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="RLE"):
        outline_to_mask(rle, 4, 5)


def test_an_rle_of_another_size_is_refused() -> None:
    with pytest.raises(DataError, match=r"\[4, 5\] does not fit an image of height 5 and width 4"):
        outline_to_mask({"size": [4, 5], "counts": [20]}, 5, 4)


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        ([[1, 1], [2, 2]], "at least 3 points"),
        ([[1, 1], [2, 2], [float("nan"), 3]], "not finite"),
        ([[1, 1], [2, 2], [float("inf"), 3]], "not finite"),
        ([[1, 1], [2, 2], [1e9, 3]], "beyond 100,000"),
    ],
)
def test_an_impossible_polygon_is_refused(polygon: list[list[float]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        outline_to_mask((np.array(polygon, dtype=np.float32),), 10, 10)


def test_a_stack_of_masks_is_refused() -> None:
    with pytest.raises(DataError, match="one mask at a time"):
        mask_to_rle(np.zeros((2, 3, 4), dtype=np.bool_))


def test_without_faster_coco_eval_polygons_name_the_extra_and_rle_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval.core.mask", None)
    with pytest.raises(MissingExtraError, match=r"fullfield\[detect\]"):
        outline_to_mask(as_outline([[0, 0, 4, 0, 4, 4]]), 8, 8)
    assert rle_to_mask({"size": [2, 2], "counts": [1, 3]}).sum() == 3
