from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fullfield.data import sample_path
from fullfield.data.detection.read import read_detection_data

FOLDER = sample_path("blood_cells_boxes")
# As SOURCE.md states them: RBC, WBC, Platelets.
COUNTS = {"train": [2381, 214, 209], "val": [940, 86, 81], "test": [805, 71, 69]}
IMAGES = {"train": 205, "val": 86, "test": 72}


def images_of(split: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((FOLDER / f"instances_{split}.json").read_text())["images"]
    return found


def test_blood_cells_boxes_hold_what_is_stated() -> None:
    data = read_detection_data(FOLDER)
    assert data.classes == ("RBC", "WBC", "Platelets")
    assert {split: len(samples) for split, samples in data.splits.items()} == IMAGES
    assert {split: data.counts(split) for split in data.splits} == COUNTS
    assert data.notes == ()


def test_every_image_has_the_stated_size_and_none_is_without_annotations() -> None:
    named = {image["file_name"] for split in IMAGES for image in images_of(split)}
    files = list((FOLDER / "images").iterdir())
    assert {path.name for path in files} == named
    for path in files:
        with Image.open(path) as image:
            assert (image.size, image.mode, image.format) == ((320, 240), "RGB", "JPEG")


def test_no_picture_is_in_two_splits_even_if_photographed_twice() -> None:
    names, small = [], []
    for split in IMAGES:
        for entry in images_of(split):
            with Image.open(FOLDER / "images" / entry["file_name"]) as image:
                small.append(np.asarray(image.convert("L").resize((32, 24)), dtype=np.float64).ravel())
            names.append((split, entry["file_name"]))
    alike = np.corrcoef(np.stack(small)) > 0.9
    pairs = [(names[i], names[j]) for i, j in np.argwhere(np.triu(alike, 1))]
    assert not [pair for pair in pairs if pair[0][0] != pair[1][0]]


@pytest.mark.parametrize("split", IMAGES)
def test_boxes_are_half_of_those_they_come_from(split: str, shared_data: Path) -> None:
    coco = json.loads((shared_data / "bccd_coco" / f"instances_{split}.json").read_text())
    source = {a["id"]: a for a in coco["annotations"] if a["image_id"] != 37}
    own = json.loads((FOLDER / f"instances_{split}.json").read_text())["annotations"]
    assert [a["id"] for a in own] == sorted(source)
    for annotation in own:
        origin = source[annotation["id"]]
        assert [2 * length for length in annotation["bbox"]] == origin["bbox"]
        assert annotation["category_id"] == origin["category_id"]
        assert annotation["image_id"] == origin["image_id"]
