from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from fullfield.data import read_image_data, sample_names, sample_path
from fullfield.errors import DataError

MOST_BYTES = 3_000_000


def test_unknown_sample_is_refused() -> None:
    with pytest.raises(DataError, match=r"'zzz'\. The samples are: blood_cells\."):
        sample_path("zzz")


@pytest.mark.parametrize("name", sample_names())
def test_source_and_licence_lie_beside_the_images(name: str) -> None:
    for document in ("SOURCE.md", "LICENSE"):
        assert (sample_path(name) / document).read_text(encoding="utf-8").strip()


@pytest.mark.parametrize("name", sample_names())
def test_sample_is_small(name: str) -> None:
    assert sum(path.stat().st_size for path in sample_path(name).rglob("*") if path.is_file()) < MOST_BYTES


def images(part: str) -> list[Path]:
    return sorted((sample_path("blood_cells") / part).rglob("*.jpg"))


def test_blood_cells_are_balanced_as_stated() -> None:
    data = read_image_data("sample:blood_cells")
    assert [a + b for a, b in zip(data.counts("train"), data.counts("val"), strict=True)] == [220] * 3
    assert data.counts("test") == [58] * 3
    assert data.majority("test") == pytest.approx(1 / 3)
    assert len(data.notes) == 1  # the cut for validation; nothing in the folders is ignored


def test_blood_cells_have_one_size() -> None:
    for path in images("train") + images("test"):
        with Image.open(path) as image:
            assert (image.size, image.mode, image.format) == ((96, 96), "RGB", "JPEG")


def test_no_source_image_of_blood_cells_is_in_both_parts() -> None:
    train, test = ({path.stem.split("_")[0] for path in images(part)} for part in ("train", "test"))
    assert len(train) > 200
    assert not train & test


def test_blood_cells_agree_with_the_boxes_they_come_from(shared_data: Path) -> None:
    for part, splits in {"train": ("train", "val"), "test": ("test",)}.items():
        boxes = {}
        for split in splits:
            coco = json.loads((shared_data / "bccd_coco" / f"instances_{split}.json").read_text())
            names = {category["id"]: category["name"] for category in coco["categories"]}
            boxes |= {a["id"]: (a["image_id"], names[a["category_id"]]) for a in coco["annotations"]}
        for path in images(part):
            image, annotation = map(int, path.stem.split("_"))
            assert boxes[annotation] == (image, path.parent.name)
