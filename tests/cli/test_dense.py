"""Detectors and segmenters by command: train, eval and predict print and write what their task has."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fullfield
from fullfield.cli.main import main
from fullfield.errors import CheckpointError
from tests.train.dense_data import HEADS, write_boxes, write_maps


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_boxes(tmp_path_factory.mktemp("boxes"))


@pytest.fixture(scope="module")
def detector(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("detector") / "run"
    fullfield.train(str(pictures), out=str(run), **HEADS["fcos"])
    return run


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    masks = write_maps(tmp_path_factory.mktemp("masks"))
    run = tmp_path_factory.mktemp("segmenter") / "run"
    fullfield.train(str(masks), out=str(run), **HEADS["upernet"])
    return run


def test_eval_of_a_detector_prints_average_precision_and_writes_it(
    detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(detector), "--out", str(tmp_path / "out"), "--json", str(tmp_path / "e.json")]) == 0
    told = capsys.readouterr().out
    assert "AP50" in told
    assert "red" in told
    figures = json.loads((tmp_path / "e.json").read_text())
    assert figures["split"] == "val"
    assert figures == json.loads((tmp_path / "out" / "evaluation.json").read_text())


def test_predict_with_a_detector_writes_coco_form(detector: Path, pictures: Path, tmp_path: Path) -> None:
    images = [str(pictures / "images" / f"{n:03}.png") for n in (100, 101)]
    found = ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "p.json")]
    assert main(["predict", str(detector), *images, "--threshold", "0", *found]) == 0
    document = json.loads((tmp_path / "p.json").read_text())
    assert [image["width"] for image in document["images"]] == [64, 64]
    assert {category["name"] for category in document["categories"]} == {"red", "green"}
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_eval_of_a_segmenter_prints_mean_iou(segmenter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(segmenter), "--flip", "--scales", "0.75", "1"]) == 0
    told = capsys.readouterr().out
    assert "mIoU" in told
    assert "class 2" in told


def test_predict_with_a_segmenter_writes_label_maps(segmenter: Path, pictures: Path, tmp_path: Path) -> None:
    image = pictures / "images" / "100.png"
    assert main(["predict", str(segmenter), str(image), "--window", "64", "--out", str(tmp_path)]) == 0
    (mask,) = (tmp_path / "masks").glob("*.png")
    labels = np.asarray(Image.open(mask))
    assert labels.shape == (64, 64)
    row = json.loads((tmp_path / "predictions.json").read_text())["images"][0]
    assert sum(row["shares"].values()) == pytest.approx(1)


def test_python_gives_what_the_commands_print(detector: Path, segmenter: Path, pictures: Path) -> None:
    image = pictures / "images" / "100.png"
    (found,) = fullfield.predict(detector, image, threshold=0.0)
    assert found.size == (64, 64)
    (map_,) = fullfield.predict(segmenter, image)
    assert map_.labels.shape == (64, 64)
    assert 0 <= fullfield.evaluate(detector).result.score <= 1


def test_options_of_another_task_are_refused(detector: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(detector), "--window", "64"]) == 2
    assert "window, scales and flip are for segmenters" in capsys.readouterr().err


def test_what_takes_classifiers_alone_says_so(detector: Path) -> None:
    with pytest.raises(CheckpointError, match="--task detect on racnn_pico"):
        fullfield.load(detector)


def test_an_image_that_cannot_be_read_is_named_and_the_others_predicted(
    detector: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    assert main(["predict", str(detector), str(broken), str(pictures / "images" / "100.png")]) == 1
    assert "broken.png" in capsys.readouterr().err
