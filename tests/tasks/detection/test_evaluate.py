"""Evaluation of a detector: which images and classes it takes, and files that COCO's own tools agree with."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fullfield.data.dense import DensePreprocess
from fullfield.data.detection.objects import DetectionData, DetectionSample
from fullfield.errors import ConfigError, DataError, RunError
from fullfield.tasks.detection.detections import Detections
from fullfield.tasks.detection.evaluate import DetectionEvaluation, evaluate_detection
from tests.images import read_rows
from tests.tasks.detection.coco_reference import H, W, ellipse, found_of, sample_of, truth_document

pytest.importorskip("faster_coco_eval", reason="needs fullfield[detect]")

BOXES = {
    "first": ([[10, 10, 40, 40], [60, 20, 150, 100]], [0, 1]),
    "second": ([[30, 30, 90, 90]], [1]),
    "third": ([], []),
}


class Finder(nn.Module):
    """Finds in an image what a function of the image says."""

    def __init__(self, find: Callable[[Tensor], Detections], channels: int = 3, masks: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.preprocess = DensePreprocess(channels=channels)
        self.find = find
        self.has_masks = masks
        self.batches: list[int] = []

    def forward(self, images: list[Tensor]) -> list[Detections]:
        self.batches.append(len(images))
        assert all(image.dtype == torch.float32 and len(image) == self.preprocess.channels for image in images)
        return [self.find(image) for image in images]


@dataclass
class Opened:
    model: Any
    classes: tuple[str, ...] = ("cell", "rod")
    name: str = "fake"
    trained: bool = True
    source: str = "runs/fake"


def grey(image: Tensor) -> int:
    """Which of the images it is: they are plain, of grey 0, 20, 40, ..."""
    return round(float(image.mean()) * 255 / 20)


@pytest.fixture
def data(tmp_path: Path) -> DetectionData:
    samples = []
    for number, (boxes, labels) in enumerate(BOXES.values()):
        made = sample_of(10 + number, boxes, labels, masks=[ellipse(np.array(b), H, W) for b in boxes])
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (W, H), (20 * number,) * 3).save(path)
        samples.append(DetectionSample(path, made.image_id, H, W, made.objects))
    splits = {"train": tuple(samples[:1]), "val": tuple(samples[1:]), "test": tuple(samples)}
    return DetectionData(str(tmp_path), ("cell", "rod"), (3, 90), splits)


def truth(image: Tensor) -> Detections:
    boxes, labels = list(BOXES.values())[grey(image)]
    masks = [ellipse(np.array(box), H, W) for box in boxes]
    return found_of(boxes, [0.9 - 0.5 * i for i in range(len(boxes))], labels, masks)


def evaluated(data: DetectionData, find: Callable[[Tensor], Detections] = truth, **more: Any) -> DetectionEvaluation:
    return evaluate_detection(Opened(Finder(find, masks=True)), data, "test", **more)


def test_right_answers_have_an_ap_of_one(data: DetectionData) -> None:
    result = evaluated(data)
    assert result.result.scalars()["ap"] == pytest.approx(1.0)
    assert result.result.scalars()["mask_ap"] == pytest.approx(1.0)
    assert (result.model, result.split, result.classes, result.trained) == ("fake", "test", ("cell", "rod"), True)
    assert [(image.image_id, image.objects, image.found, image.certain) for image in result.images] == [
        (10, 2, 2, 1),
        (11, 1, 1, 1),
        (12, 0, 0, 0),
    ]
    assert result.objects == (1, 2)


def test_split_decides_which_images_are_taken(data: DetectionData) -> None:
    opened = Opened(Finder(truth))
    assert [image.image_id for image in evaluate_detection(opened, data, "val").images] == [11, 12]
    data.splits.pop("test")
    assert [image.image_id for image in evaluate_detection(opened, data, "all").images] == [10, 11, 12]
    with pytest.raises(DataError, match="has no 'tset' part; it has train, val"):
        evaluate_detection(opened, data, "tset")


def test_images_come_in_batches_of_the_size_asked_for(data: DetectionData) -> None:
    opened = Opened(Finder(truth))
    evaluate_detection(opened, data, "test", batch_size=2)
    assert opened.model.batches == [2, 1]


def test_grey_models_get_one_channel(data: DetectionData) -> None:
    assert len(evaluate_detection(Opened(Finder(truth, channels=1)), data, "test").images) == 3


def test_classes_are_matched_by_name(data: DetectionData) -> None:
    """The model's labels are (platelet, rod, cell), the data's (cell, rod)."""

    def find(image: Tensor) -> Detections:
        found = truth(image)
        return Detections(found.boxes, found.scores, 2 - found.labels)

    result = evaluate_detection(Opened(Finder(find), ("platelet", "rod", "cell")), data, "test")
    assert result.result.score == pytest.approx(1.0)
    np.testing.assert_allclose(result.result.box.per_class, [np.nan, 1, 1])
    assert result.category_ids == (91, 90, 3)
    assert [p["category_id"] for p in result.predictions] == [3, 90, 90]


def test_class_that_the_model_does_not_know_is_refused(data: DetectionData) -> None:
    with pytest.raises(DataError, match=r"the model runs/fake knows 1; it does not know 'rod'\. Rename the categories"):
        evaluate_detection(Opened(Finder(truth), ("cell",)), data, "test")


def test_unreadable_images_are_named_and_left_out(data: DetectionData) -> None:
    data.splits["test"][0].path.write_bytes(b"no image")
    Image.new("RGB", (W + 1, H)).save(data.splits["test"][2].path)
    result = evaluated(data)
    assert [image.image_id for image in result.images] == [11]
    assert {bad.path for bad in result.unreadable} == {str(data.splits["test"][i].path) for i in (0, 2)}
    assert result.result.images == 1
    assert result.objects == (0, 1)
    assert len(result.to_dict()["unreadable"]) == 2


def test_data_without_a_readable_image_is_refused(data: DetectionData) -> None:
    for sample in data.splits["test"]:
        sample.path.unlink()
    with pytest.raises(DataError, match=r"none of the 3 images can be read: .*0\.png"):
        evaluated(data)


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"workers": -1}])
def test_impossible_arguments_are_refused(data: DetectionData, bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="batch_size must be at least 1 and workers at least 0"):
        evaluated(data, **bad)


def nearly(image: Tensor) -> Detections:
    """The truth a little aside, and something wrong."""
    found, wrong = truth(image), [[100, 60, 140, 110]]
    boxes = np.concatenate([found.boxes.numpy() + np.array([3, 2, 3, 2]), wrong])
    masks = [ellipse(box, H, W) for box in boxes]
    return found_of(boxes, [*found.scores.tolist(), 0.3], [*found.labels.tolist(), 0], masks)


def test_saved_files_agree_with_pycocotools(data: DetectionData, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    result = evaluated(data, nearly)
    folder = result.save(tmp_path / "made" / "here")
    stored = json.loads((folder / "evaluation.json").read_text())
    document = truth_document(list(data.splits["test"]), 2)
    document["categories"] = [{"id": number} for number in data.category_ids]
    for annotation in document["annotations"]:
        annotation["category_id"] = data.category_ids[annotation["category_id"]]
    for kind, name in (("bbox", "ap"), ("segm", "mask_ap")):
        with contextlib.redirect_stdout(None):
            truth_ = COCO()
            truth_.dataset = document
            truth_.createIndex()
            found = truth_.loadRes(str(folder / "predictions.json"))
            evaluation = COCOeval(truth_, found, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        assert 0.2 < stored[name] < 0.9
        assert [stored[name], stored[f"{name}50"]] == pytest.approx(evaluation.stats[:2].tolist(), abs=1e-9)
    rows = read_rows(folder / "per_class.csv")
    assert [(row["class"], row["category_id"], row["objects"]) for row in rows] == [
        ("cell", "3", "1"),
        ("rod", "90", "2"),
    ]
    assert np.mean([float(row["ap"]) for row in rows]) == pytest.approx(stored["ap"], abs=1e-4)
    assert stored["per_class"]["rod"]["mask_ap"] == pytest.approx(float(rows[1]["mask_ap"]), abs=1e-4)
    assert [row["image_id"] for row in read_rows(folder / "images.csv")] == ["10", "11", "12"]


def test_class_without_an_object_has_an_empty_cell(data: DetectionData, tmp_path: Path) -> None:
    opened = Opened(Finder(truth), ("cell", "rod", "platelet"))
    folder = evaluate_detection(opened, data, "test").save(tmp_path / "out")
    assert read_rows(folder / "per_class.csv")[2] == {
        "class": "platelet",
        "category_id": "91",
        "objects": "0",
        "ap": "",
    }
    assert json.loads((folder / "evaluation.json").read_text())["per_class"]["platelet"]["ap"] is None


def test_folder_that_cannot_be_written_is_refused(data: DetectionData, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="file"):
        evaluated(data).save(tmp_path / "file" / "inside")
