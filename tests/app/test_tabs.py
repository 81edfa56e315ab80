"""What the tabs show, compared with what the measuring functions give by themselves."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fullfield.app.answer import answer
from fullfield.app.cost_tab import cost_rows
from fullfield.app.fields_tab import IMAGES, draw_field, measure_fields
from fullfield.app.look_tab import METHODS, explain
from fullfield.app.predict_tab import show_answer
from fullfield.app.report_tab import BEGINNING, report_frame
from fullfield.app.shelf import Shelf, Shelved
from fullfield.app.upload import Upload
from fullfield.errors import ConfigError, ImageError, RunError
from fullfield.measure import cam, cost, erf
from fullfield.measure.cam import METHODS as ALL_METHODS
from fullfield.tasks.answers import Prediction
from fullfield.tasks.detection.draw import draw_detections
from fullfield.tasks.draw import percent
from fullfield.tasks.predict import predict
from fullfield.tasks.segmentation.draw import draw_segmentation


def label_of(shelf: Shelf, task: str) -> str:
    return next(label for label in shelf.labels if shelf[label].predictor.task == task)


# --- answers ---


def test_classifier_is_answered_with_the_labels_of_predict(
    shelf: Shelf, photo: Image.Image, upload: Upload, weights: dict[str, Path]
) -> None:
    (expected,) = predict(weights["classify"], str(upload.path), device="cpu")
    found = answer(shelf[label_of(shelf, "classify")], photo, "a.png", threshold=0.3)
    assert found.picture is None
    order = re.findall(r'class="ff-name">(.*?)</span> <span class="ff-figure">(.*?)</span>', found.html)
    told = [(unescape(name), unescape(share)) for name, share in order]
    assert told == [(name, percent(share)) for name, share in expected.labels]


def test_detector_is_answered_with_its_boxes_drawn_and_counted(shelf: Shelf, photo: Image.Image) -> None:
    model = shelf[label_of(shelf, "detect")]
    (expected,) = model.predictor.answer([photo], ["a"], threshold=0.0)
    found = answer(model, photo, "a.png", threshold=0.0)
    assert found.picture is not None
    assert np.array_equal(np.asarray(found.picture), np.asarray(draw_detections(photo, expected.detections)))
    assert f"{len(expected.detections)} objects: " in found.html
    assert found.html.count("<tr>") == 1 + min(50, len(expected.detections))


def test_detector_that_finds_nothing_says_so(shelf: Shelf, photo: Image.Image) -> None:
    found = answer(shelf[label_of(shelf, "detect")], photo, "a.png", threshold=1.0)
    assert "No object scores 1.00 or more." in found.html


def test_segmenter_is_answered_with_its_outlines_and_shares(shelf: Shelf, photo: Image.Image) -> None:
    predictor = shelf[label_of(shelf, "segment")].predictor
    (expected,) = predictor.answer([photo], ["a"])
    found = answer(shelf[label_of(shelf, "segment")], photo, "a.png", threshold=0.3)
    drawn = draw_segmentation(photo, expected.labels, predictor.classes, predictor.colours)
    assert np.array_equal(np.asarray(found.picture), np.asarray(drawn))
    assert found.html.count("<li") == len(expected.shares)


def test_picture_that_the_model_refuses_is_told(photo: Image.Image) -> None:
    class Refusing:
        engine, trained = "E", True

        def answer(self, images: Any, names: Any, **_: Any) -> list[Prediction]:
            return [Prediction(Path(names[0]), (), "a.png: is too flat")]

    with pytest.raises(ImageError, match="too flat"):
        answer(Shelved("m", "m", Refusing()), photo, "a.png", threshold=0.3)  # type: ignore[arg-type]


def test_without_a_picture_there_is_no_answer(shelf: Shelf) -> None:
    drawn, text = show_answer(shelf, shelf.labels[0], None, 0.3, "nothing yet")
    assert (drawn["visible"], text) == (False, "nothing yet")


# --- class-activation maps ---


def test_methods_are_those_of_the_measure() -> None:
    assert set(METHODS) == set(ALL_METHODS)


@pytest.mark.parametrize("task", ["classify", "segment"])
def test_map_is_of_the_class_that_was_asked_for(shelf: Shelf, photo: Image.Image, task: str) -> None:
    label = label_of(shelf, task)
    expected = cam(shelf.net(label, "maps"), photo, target=2, steps=0)
    picture, html = explain(shelf, label, photo, 2, "grad-cam")
    assert "What speaks for fox" in html
    assert percent(expected.confidence) in unescape(html)
    assert picture.width >= 480
    assert picture.width / picture.height == expected.image.shape[1] / expected.image.shape[0]


def test_map_of_a_class_that_is_not_detected_is_a_sentence(shelf: Shelf) -> None:
    empty = Image.new("RGB", (64, 64))
    with pytest.raises(ConfigError):
        explain(shelf, label_of(shelf, "detect"), empty, 99, "grad-cam")


# --- effective receptive fields ---


def test_fields_are_those_of_every_stage_with_the_measures_numbers(shelf: Shelf) -> None:
    label = label_of(shelf, "classify")
    html = measure_fields(shelf, [label], "noise", 2, None)
    expected = erf(shelf.net(label, "fields"), layer="stages.1", count=2)
    rows = re.findall(r'<tr><th scope="row">(.*?)</th><td class="ff-number">(.*?)</td>', html)
    assert [name for name, _ in rows] == [f"stages.{i}" for i in range(4)]
    assert dict(rows)["stages.1"] == f"{expected.half_mass_radius:.0f} px"
    assert html.count("<figure>") == 4
    assert "Averaged over 2 images of noise (seed 0), no real ones" in html
    assert 'download="effective_receptive_fields.png"' in html


def test_fields_of_the_picture_are_of_that_one_image_and_of_several_models(shelf: Shelf, upload: Upload) -> None:
    html = measure_fields(shelf, [label_of(shelf, "classify"), label_of(shelf, "segment")], "picture", 9, upload)
    assert "Averaged over the picture" in html
    assert html.count("<h3>") == 2
    assert html.count("<figure>") == 8


def test_square_in_a_field_holds_half_of_the_mass(shelf: Shelf) -> None:
    found = erf(shelf.net(shelf.labels[0], "fields"), layer="stages.0", count=1)
    picture = np.asarray(draw_field(found))
    scale = picture.shape[0] // found.map.shape[0]
    rows, columns = np.nonzero((picture == (0x35, 0xC6, 0xF4)).all(axis=2))
    assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == scale * found.squares[0.5].width


@pytest.mark.parametrize(
    ("labels", "images", "number", "sentence"),
    [
        (0, "noise", 2, "choose at least one model"),
        (1, "noise", 17, "1 to 16 images"),
        (1, "/etc", 2, "those that the page offers"),
        (1, "picture", 1, "there is no picture yet"),
    ],
)
def test_impossible_settings_of_fields_are_told(
    shelf: Shelf, labels: int, images: str, number: int, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        measure_fields(shelf, shelf.labels[:labels], images, number, None)


def test_every_choice_of_images_can_be_measured(shelf: Shelf, upload: Upload) -> None:
    for _, images in IMAGES:
        assert "<figure>" in measure_fields(shelf, shelf.labels[:1], images, 1, upload)


# --- costs ---


def test_costs_are_those_of_the_measure_each_in_its_column(shelf: Shelf) -> None:
    rows = {row["name"]: row for row in cost_rows(shelf)}
    label = label_of(shelf, "classify")
    expected = cost(shelf.net(label, "costs").model, image_size=32)
    row = rows[label]
    assert (row["params"], row["macs"], row["flops"]) == (expected.params, expected.macs, expected.flops)
    assert row["flops"] == 2 * row["macs"]
    assert row["size"] == "32×32"
    detector = shelf.net(label_of(shelf, "detect"), "costs").model
    assert rows[label_of(shelf, "detect")]["part"] == "backbone"
    assert rows[label_of(shelf, "detect")]["params"] == sum(p.numel() for p in detector.backbone.parameters())
    segmenter = shelf.net(label_of(shelf, "segment"), "costs").model
    assert rows[label_of(shelf, "segment")]["params"] == sum(p.numel() for p in segmenter.parameters())


# --- reports ---


class OneRun(Shelf):
    """A shelf of one model whose run lies in a folder."""

    def __init__(self, folder: Path) -> None:
        self._models = {"run": Shelved("run", str(folder), None)}  # type: ignore[arg-type]


def test_report_is_framed_so_that_it_can_run_and_fetch_nothing(tmp_path: Path) -> None:
    text = '<!doctype html>\n<title>"x"</title><script>alert(1)</script><img src="https://example.org/a.png">'
    (tmp_path / "report.html").write_text(text)
    html = report_frame(OneRun(tmp_path), "run")
    assert 'sandbox=""' in html
    assert "<script>" not in html  # it is all inside the attribute, escaped
    document = re.search(r'srcdoc="(.*)"></iframe>', html, re.DOTALL)
    assert document is not None
    assert unescape(document[1]) == text.replace("<!doctype html>", "<!doctype html>" + BEGINNING)


def test_report_without_a_doctype_begins_with_the_policy(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<p>old</p>")
    assert 'srcdoc="&lt;meta http-equiv=' in report_frame(OneRun(tmp_path), "run")


def test_missing_and_huge_reports_are_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="run has no report: `fullfield train` writes one"):
        report_frame(OneRun(tmp_path), "run")
    (tmp_path / "report.html").write_text("x" * 100)
    monkeypatch.setattr("fullfield.app.report_tab.LARGEST", 10)
    with pytest.raises(RunError, match="more than 10 bytes"):
        report_frame(OneRun(tmp_path), "run")
