"""Predicted label maps against the truth of painted pictures, and the files that are written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fullfield.data.dense import DensePreprocess
from fullfield.errors import ConfigError, DataError, RunError
from fullfield.tasks.segmentation.answers import label_image, save_segmentation
from fullfield.tasks.segmentation.predict import predict_segmentation
from tests.tasks.segmentation.fakes import CLASSES, COLOURS, Knows, Opened, halves, write_data


def test_labels_and_shares_are_those_of_the_painted_picture(tmp_path: Path) -> None:
    data = write_data(tmp_path)
    predictions = list(predict_segmentation(Opened(), [sample.path for sample in data.splits["train"]]))
    truths = [halves(20, 30, 0, 1), halves(33, 17, 2, 0)]
    for prediction, truth in zip(predictions, truths, strict=True):
        assert prediction.labels is not None
        assert prediction.labels.dtype == np.uint8
        assert (prediction.labels == truth).all()
        assert prediction.error is None
    assert predictions[0].shares == (("red", 0.5), ("green", 0.5))
    assert predictions[1].shares == (("red", pytest.approx(9 / 17)), ("blue", pytest.approx(8 / 17)))


def test_a_picture_is_resized_for_the_model_and_its_labels_are_not(tmp_path: Path) -> None:
    data = write_data(tmp_path)
    opened = Opened(model=Knows(preprocess=DensePreprocess(short_side=64)))
    (prediction,) = predict_segmentation(opened, data.splits["val"][0].path)
    assert prediction.labels is not None
    assert (prediction.labels == halves(16, 16, 0, 1)).all()


def test_an_upright_picture_gets_upright_labels(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    table = np.array(COLOURS, np.uint8)
    Image.fromarray(table[halves(20, 30, 0, 1)]).save(tmp_path / "turned.png", exif=exif)
    (prediction,) = predict_segmentation(Opened(), tmp_path)
    assert prediction.labels is not None
    assert prediction.labels.shape == (30, 20)
    folder = save_segmentation([prediction], tmp_path / "out", classes=CLASSES, colours=COLOURS)
    assert len(list((folder / "drawn").iterdir())) == 1


def test_more_than_256_classes_need_16_bits(tmp_path: Path) -> None:
    class Many(Knows):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(len(images), 300, *images.shape[-2:])
            logits[:, 299] = 1
            return logits

    classes = tuple(map(str, range(300)))
    colours = tuple((0, i % 256, i // 256) for i in range(300))
    opened = Opened(model=Many(), classes=classes, colours=colours)
    data = write_data(tmp_path)
    (prediction,) = predict_segmentation(opened, data.splits["val"][0].path)
    assert prediction.labels is not None
    assert prediction.labels.dtype == np.uint16
    folder = save_segmentation([prediction], tmp_path / "out", classes=classes, colours=colours)
    (mask,) = (folder / "masks").iterdir()
    assert (np.asarray(Image.open(mask)) == 299).all()


def test_saved_masks_are_palette_images_whose_indices_are_labels(tmp_path: Path) -> None:
    data = write_data(tmp_path)
    predictions = list(predict_segmentation(Opened(), tmp_path / "images"))
    folder = save_segmentation(predictions, tmp_path / "deep" / "out", classes=CLASSES, colours=COLOURS)
    stored = json.loads((folder / "predictions.json").read_text())
    assert stored["classes"] == list(CLASSES)
    assert [Path(row["path"]).name for row in stored["images"]] == ["a.png", "b.png", "c.png"]
    row = stored["images"][0]
    assert row["size"] == {"width": 30, "height": 20}
    assert row["shares"] == {"red": 0.5, "green": 0.5}
    with Image.open(folder / row["mask"]) as mask:
        assert mask.mode == "P"
        assert (np.asarray(mask) == halves(20, 30, 0, 1)).all()
        assert (np.asarray(mask.convert("RGB")) == np.asarray(Image.open(data.splits["train"][0].path))).all()
    assert Image.open(folder / row["drawn"]).mode == "RGB"


def test_an_unreadable_picture_says_why_and_the_others_are_predicted(tmp_path: Path) -> None:
    write_data(tmp_path)
    (tmp_path / "images" / "bad.png").write_text("nothing")
    predictions = list(predict_segmentation(Opened(), tmp_path / "images"))
    assert [prediction.labels is None for prediction in predictions] == [False, False, True, False]
    assert predictions[2].error is not None
    assert "bad.png" in predictions[2].error
    folder = save_segmentation(predictions, tmp_path / "out", classes=CLASSES, colours=COLOURS, draw=False)
    row = json.loads((folder / "predictions.json").read_text())["images"][2]
    assert row["error"] == predictions[2].error
    assert "mask" not in row
    assert len(list((folder / "masks").iterdir())) == 3
    assert not (folder / "drawn").exists()


def test_predictions_are_made_one_at_a_time_and_paths_are_checked_at_once(tmp_path: Path) -> None:
    write_data(tmp_path)
    with pytest.raises(DataError, match="there is no image"):
        predict_segmentation(Opened(), tmp_path / "images" / "z.png")
    predictions = predict_segmentation(Opened(), tmp_path / "images")
    assert next(predictions).path.name == "a.png"
    (tmp_path / "images" / "b.png").unlink()
    assert next(predictions).error is not None


def test_folders_that_cannot_be_written_and_missing_colours_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError):
        save_segmentation([], tmp_path / "file", classes=CLASSES, colours=COLOURS)
    with pytest.raises(ConfigError, match="3 classes need as many colours, not 2"):
        save_segmentation([], tmp_path / "out", classes=CLASSES, colours=COLOURS[:2])


def test_256_classes_fit_a_palette() -> None:
    labels = np.arange(256).reshape(16, 16)
    image = label_image(labels, [(i, 0, 255 - i) for i in range(256)])
    assert image.mode == "P"
    assert (np.asarray(image) == labels).all()
    assert image.convert("RGB").getpixel((15, 15)) == (255, 0, 0)
