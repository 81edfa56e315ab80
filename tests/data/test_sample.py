from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from fullfield.data import read_image_data, sample_names, sample_path
from fullfield.data.detection.read import is_detection_data, read_detection_data
from fullfield.data.segmentation.read import is_segmentation_data, read_segmentation_data
from fullfield.errors import DataError
from fullfield.train.kinds.find import find_task
from fullfield.train.settings import TrainSettings

MOST_BYTES = {"blood_cells": 2_000_000, "blood_cells_boxes": 5_000_000, "nuclei": 3_000_000}
TASKS = {"blood_cells": "classify", "blood_cells_boxes": "detect", "nuclei": "segment"}
READERS = {"classify": read_image_data, "detect": read_detection_data, "segment": read_segmentation_data}


def test_every_folder_is_a_sample_and_every_sample_a_folder() -> None:
    folder = sample_path("blood_cells").parent
    assert sample_names() == sorted(path.name for path in folder.iterdir()) == list(TASKS)


def test_samples_are_listed_by_task() -> None:
    assert {task: sample_names(task) for task in READERS} == {task: [name] for name, task in TASKS.items()}


def test_unknown_sample_is_refused() -> None:
    with pytest.raises(DataError, match=r"'zzz'\. The samples are: blood_cells, blood_cells_boxes, nuclei\."):
        sample_path("zzz")


def test_misspelt_sample_is_answered_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"'nucleus'.*nuclei"):
        sample_path("nucleus")


@pytest.mark.parametrize("name", sample_names())
def test_training_finds_the_task_of_a_sample(name: str) -> None:
    assert find_task(TrainSettings(f"sample:{name}")) == TASKS[name]


@pytest.mark.parametrize("name", sample_names())
def test_sample_is_read_for_its_own_task_without_a_note_on_a_defect(name: str) -> None:
    data = READERS[TASKS[name]](f"sample:{name}")
    assert data.source == f"sample:{name}"
    assert set(data.splits) == {"train", "val", "test"}
    # the cut for validation of the one that has no validation part
    assert len(data.notes) == (name == "blood_cells")


@pytest.mark.parametrize(("name", "task"), [(n, t) for n in TASKS for t in READERS if TASKS[n] != t])
def test_sample_for_another_task_is_refused_with_one_that_fits(name: str, task: str) -> None:
    fitting = next(other for other in TASKS if TASKS[other] == task)
    with pytest.raises(DataError, match=rf"'{name}' is annotated for \w+, not for \w+\. Use sample:{fitting}\."):
        READERS[task](f"sample:{name}")


@pytest.mark.parametrize("name", sample_names())
def test_a_glance_at_a_sample_tells_what_it_is_for(name: str) -> None:
    assert is_detection_data(f"sample:{name}") == (TASKS[name] == "detect")
    assert is_segmentation_data(f"sample:{name}") == (TASKS[name] == "segment")


@pytest.mark.parametrize("name", sample_names())
def test_source_and_licence_lie_beside_the_images(name: str) -> None:
    for document in ("SOURCE.md", "LICENSE"):
        assert (sample_path(name) / document).read_text(encoding="utf-8").strip()


@pytest.mark.parametrize("name", sample_names())
def test_sample_is_small(name: str) -> None:
    assert sum(path.stat().st_size for path in sample_path(name).rglob("*") if path.is_file()) < MOST_BYTES[name]


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
