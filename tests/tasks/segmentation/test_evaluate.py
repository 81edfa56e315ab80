"""Evaluation of a model that is right by construction, where the data disagree in known places."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fullfield.errors import ConfigError, DataError, RunError
from fullfield.tasks.segmentation.evaluate import evaluate_segmentation
from fullfield.tasks.segmentation.inference import InferenceOptions
from tests.images import read_rows
from tests.tasks.segmentation.fakes import CLASSES, Knows, Opened, write_data


def test_a_model_that_is_right_has_all_figures_1(tmp_path: Path) -> None:
    evaluation = evaluate_segmentation(Opened(), write_data(tmp_path), "train")
    assert evaluation.result.images == 2
    assert evaluation.result.miou == evaluation.result.macc == evaluation.result.pixel_accuracy == 1
    assert evaluation.result.loss is not None
    assert evaluation.result.loss < 1e-3
    assert evaluation.result.confusion.sum() == 20 * 30 + 33 * 17


def test_figures_count_each_labelled_pixel_of_the_original_size(tmp_path: Path) -> None:
    result = evaluate_segmentation(Opened(), write_data(tmp_path), "val").result
    # of 256 pixels 64 are ignored, and 64 that look red are labelled blue
    assert result.confusion.tolist() == [[64, 0, 0], [0, 64, 0], [64, 0, 0]]
    assert result.iou.tolist() == [0.5, 1, 0]
    assert result.pixel_accuracy == pytest.approx(2 / 3)


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    data = write_data(tmp_path)
    other = Opened(model=Knows((2, 0, 1)), classes=("blue", "red", "green"))
    ours, theirs = evaluate_segmentation(Opened(), data, "val"), evaluate_segmentation(other, data, "val")
    assert theirs.classes == ("blue", "red", "green")
    assert theirs.result.scalars() == pytest.approx(ours.result.scalars())
    assert theirs.result.iou.tolist() == [0, 0.5, 1]


def test_a_model_may_know_more_classes_than_the_data(tmp_path: Path) -> None:
    data = write_data(tmp_path)
    fewer = replace(data, classes=("red", "green", "sky"), colours=data.colours)
    with pytest.raises(DataError, match=r"does not know 'sky'\. Rename"):
        evaluate_segmentation(Opened(), fewer, "val")
    more = Opened(classes=("red", "green", "blue"))
    assert evaluate_segmentation(more, data, "all").result.images == 3


def test_windows_scales_and_mirrors_agree_on_pictures_of_flat_colour(tmp_path: Path) -> None:
    data = write_data(tmp_path)
    options = InferenceOptions(window=32, stride=8, scales=(1.0, 2.0), flip=True)
    evaluation = evaluate_segmentation(Opened(), data, "train", options=options)
    assert evaluation.result.pixel_accuracy > 0.95  # pixels beside an edge may turn
    assert evaluation.to_dict()["options"] == {"window": 32, "stride": 8, "scales": [1.0, 2.0], "flip": True}


def test_unreadable_pairs_are_named_and_the_others_counted(tmp_path: Path) -> None:
    data = write_data(tmp_path)
    data.splits["train"][0].mask.write_bytes(b"not a label map")
    evaluation = evaluate_segmentation(Opened(), data, "all", workers=1)
    assert evaluation.result.images == 2
    assert [Path(bad.path).name for bad in evaluation.unreadable] == ["a.png"]
    for sample in data.splits["val"]:
        sample.path.unlink()
    with pytest.raises(DataError, match=r"none of the 1 images can be read: .*c\.png: does not exist"):
        evaluate_segmentation(Opened(), data, "val")


def test_saved_tables_hold_the_figures(tmp_path: Path) -> None:
    data = write_data(tmp_path)
    evaluation = evaluate_segmentation(Opened(), data, "train")
    folder = evaluate_segmentation(Opened(), data, "val").save(tmp_path / "deep" / "report")
    stored = json.loads((folder / "evaluation.json").read_text())
    assert stored["iou"] == {"red": 0.5, "green": 1.0, "blue": 0.0}
    assert stored["miou"] == 0.5
    assert stored["split"] == "val"
    rows = read_rows(folder / "per_class.csv")
    assert rows[1] == {
        "class": "green", "iou": "1.0000", "accuracy": "1.0000", "true_pixels": "64", "predicted_pixels": "64"
    }  # fmt: skip
    matrix = (folder / "confusion.csv").read_text().splitlines()
    assert matrix[0] == "true \\ predicted,red,green,blue"
    assert matrix[3] == "blue,64,0,0"
    assert evaluation.to_dict()["accuracy"] == dict.fromkeys(CLASSES, 1.0)


def test_figures_of_an_absent_class_are_null(tmp_path: Path) -> None:
    data = write_data(tmp_path)
    only = replace(data, splits={**data.splits, "test": data.splits["train"][:1]})
    evaluation = evaluate_segmentation(Opened(), only, "test")
    assert evaluation.to_dict()["iou"] == {"red": 1.0, "green": 1.0, "blue": None}
    json.dumps(evaluation.to_dict(), allow_nan=False)
    assert read_rows(evaluation.save(tmp_path / "out") / "per_class.csv")[2]["iou"] == ""


def test_impossible_requests_are_refused(tmp_path: Path) -> None:
    data = write_data(tmp_path)
    with pytest.raises(DataError, match="has no 'test' part; it has train, val"):
        evaluate_segmentation(Opened(), data, "test")
    with pytest.raises(ConfigError, match="workers is -1"):
        evaluate_segmentation(Opened(), data, "val", workers=-1)
    (tmp_path / "file").touch()
    with pytest.raises(RunError):
        evaluate_segmentation(Opened(), data, "val").save(tmp_path / "file")
