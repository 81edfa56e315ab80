"""Finding objects in unlabelled images, and the files of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fullfield.errors import ConfigError, DataError
from fullfield.tasks.detection.answers import DetectionPrediction, save_detection_predictions
from fullfield.tasks.detection.coco_form import Detection
from fullfield.tasks.detection.detections import Detections
from fullfield.tasks.detection.predict import predict_detection
from tests.images import read_rows
from tests.tasks.detection.coco_reference import found_of
from tests.tasks.detection.test_evaluate import Finder, Opened

pytest.importorskip("faster_coco_eval", reason="needs fullfield[detect]")

CLASSES = ("cell", "rod")
BOX = [5.0, 8.0, 25.0, 18.0]


def find(image: Tensor) -> Detections:
    """A cell, a rod and something doubtful in every image that is not black."""
    if not image.any():
        return found_of([], [], [])
    masks = torch.zeros(3, *image.shape[1:], dtype=torch.bool)
    masks[:, 8:18, 5:25] = True
    boxes = torch.tensor([BOX, [0.0, 0.0, 40.0, 30.0], [1.0, 1.0, 9.0, 9.0]])
    return Detections(boxes, torch.tensor([0.9, 0.5, 0.2]), torch.tensor([1, 0, 0]), masks)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, value in (("a", 200), ("b", 0), ("c", 90)):
        Image.new("RGB", (40, 30), (value,) * 3).save(folder / f"{name}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def predicted(images: Any, **more: Any) -> list[DetectionPrediction]:
    return predict_detection(Opened(Finder(find)), images, **more)


def test_objects_have_names_scores_boxes_and_masks(photos: Path) -> None:
    (one,) = predicted(photos / "a.png")
    assert [(d.name, d.label, round(d.score, 4), d.box) for d in one.detections] == [
        ("rod", 1, 0.9, tuple(BOX)),
        ("cell", 0, 0.5, (0.0, 0.0, 40.0, 30.0)),
    ]
    assert one.size == (30, 40)
    assert one.detections[0].mask is not None
    assert one.detections[0].mask["size"] == [30, 40]


@pytest.mark.parametrize(("threshold", "objects"), [(0.0, 3), (0.2, 3), (0.5, 2), (0.51, 1), (1.0, 0)])
def test_threshold_keeps_scores_from_it_on(photos: Path, threshold: float, objects: int) -> None:
    assert len(predicted(photos / "a.png", threshold=threshold)[0].detections) == objects


@pytest.mark.parametrize("batch_size", [1, 3])
def test_folders_are_searched_and_broken_images_say_why(photos: Path, batch_size: int) -> None:
    found = predicted(photos, batch_size=batch_size)
    assert [p.path.name for p in found] == ["a.png", "b.png", "broken.jpg", "c.png"]
    assert [len(p.detections) for p in found] == [2, 0, 0, 2]
    assert [p.error is None for p in found] == [True, True, False, True]
    assert found[2].size is None


def test_object_that_is_not_finite_is_none(photos: Path) -> None:
    def lost(image: Tensor) -> Detections:
        return found_of([[1, 1, float("nan"), 9], [1, 1, 9, 9], [2, 2, 8, 8]], [0.9, float("nan"), 0.8], [0, 0, 0])

    (one,) = predict_detection(Opened(Finder(lost)), photos / "a.png")
    assert [d.box for d in one.detections] == [(2.0, 2.0, 8.0, 8.0)]


def test_impossible_arguments_are_refused(photos: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        predicted(photos, batch_size=0)
    with pytest.raises(ConfigError, match="threshold is 30; scores go from 0 to 1"):
        predicted(photos, threshold=30)
    with pytest.raises(DataError, match=r"there is no image .*d\.png"):
        predicted(photos / "d.png")


def test_saved_json_is_a_coco_file_of_what_was_found(photos: Path, tmp_path: Path) -> None:
    mask_tools = pytest.importorskip("pycocotools.mask")
    folder = save_detection_predictions(predicted(photos), tmp_path / "out", classes=CLASSES, draw=False)
    document = json.loads((folder / "predictions.json").read_text())
    assert document["categories"] == [{"id": 1, "name": "cell"}, {"id": 2, "name": "rod"}]
    assert [(i["id"], Path(i["file_name"]).name, i["height"], i["width"]) for i in document["images"]] == [
        (1, "a.png", 30, 40),
        (2, "b.png", 30, 40),
        (3, "c.png", 30, 40),
    ]
    assert [(a["id"], a["image_id"], a["category_id"]) for a in document["annotations"]] == [
        (1, 1, 2),
        (2, 1, 1),
        (3, 3, 2),
        (4, 3, 1),
    ]
    first = document["annotations"][0]
    assert first["bbox"] == [5, 8, 20, 10]
    assert first["area"] == 200
    assert first["iscrowd"] == 0
    drawn = mask_tools.decode(first["segmentation"])
    assert drawn.sum() == drawn[8:18, 5:25].sum() == 200
    (bad,) = document["unreadable"]
    assert Path(bad["file_name"]).name == "broken.jpg"
    assert bad["reason"]


def test_saved_file_can_be_read_back_as_labelled_data(photos: Path, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    folder = save_detection_predictions(predicted(photos), tmp_path / "out", classes=CLASSES, draw=False)
    read = coco.COCO(str(folder / "predictions.json"))
    assert sorted(read.getAnnIds(imgIds=[3])) == [3, 4]


def test_table_has_a_row_for_each_object_and_each_image_without_one(photos: Path, tmp_path: Path) -> None:
    folder = save_detection_predictions(predicted(photos), tmp_path / "out", classes=CLASSES, draw=False)
    rows = read_rows(folder / "predictions.csv")
    assert [(Path(row["path"]).name, row["class"], row["score"]) for row in rows] == [
        ("a.png", "rod", "0.9000"),
        ("a.png", "cell", "0.5000"),
        ("b.png", "", ""),
        ("broken.jpg", "", ""),
        ("c.png", "rod", "0.9000"),
        ("c.png", "cell", "0.5000"),
    ]
    assert [rows[0][edge] for edge in ("left", "top", "right", "bottom")] == ["5.0", "8.0", "25.0", "18.0"]
    assert [bool(row["error"]) for row in rows] == [False, False, False, True, False, False]
    assert not list(folder.glob("*.png"))


def test_every_readable_image_is_drawn(photos: Path, tmp_path: Path) -> None:
    folder = save_detection_predictions(predicted(photos), tmp_path / "out", classes=CLASSES)
    assert sorted(p.name.rsplit("-", 1)[0] for p in folder.glob("*.png")) == ["a", "b", "c"]
    drawn = np.asarray(Image.open(next(folder.glob("a-*.png"))))
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 2
    empty = np.asarray(Image.open(next(folder.glob("b-*.png"))))
    assert not empty.any()


def test_classes_of_another_model_are_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.png: an object is 'rod', class 1, and the 1 classes given"):
        save_detection_predictions(predicted(photos), tmp_path / "out", classes=["cell"])
    foreign = [DetectionPrediction(Path("a.png"), (Detection("rod", 0, 0.5, (0, 0, 1, 1)),), (30, 40))]
    with pytest.raises(ConfigError, match="give the classes of the model that predicted it"):
        save_detection_predictions(foreign, tmp_path / "out", classes=CLASSES)
