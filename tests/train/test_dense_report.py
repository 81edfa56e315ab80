"""The report pages of detection and segmentation, read back with `Page` of test_report.py and compared with counts."""

from __future__ import annotations

import base64
import csv
import io
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fullfield.data.dense import DensePreprocess
from fullfield.data.detection.objects import DetectionData, DetectionSample, Objects
from fullfield.data.segmentation.label_maps import SegmentationData
from fullfield.errors import MissingExtraError
from fullfield.tasks.detection.coco_form import Detection
from fullfield.tasks.detection.detections import Detections
from fullfield.tasks.detection.detector import Detector
from fullfield.tasks.detection.evaluate import evaluate_detection
from fullfield.tasks.open import OpenedDense
from fullfield.tasks.run_folder import RunFolder
from fullfield.tasks.segmentation.evaluate import evaluate_segmentation
from fullfield.tasks.segmentation.segmenter import Segmenter
from fullfield.train.dense_pictures import detection_pictures, objects_found
from fullfield.train.dense_report import detection_report, segmentation_report
from fullfield.train.settings import TrainSettings
from tests.tasks.segmentation.fakes import CLASSES, COLOURS, Knows, halves, write_data, write_pair
from tests.train.test_report import Page

pytest.importorskip("faster_coco_eval", reason="needs fullfield[detect]")

SIDE = 64
NAMES = ("cell", "rod", "dust")
HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }} 日本 & 'quoted'")
HISTORY = [
    {"epoch": 1, "lr": 0.001, "train_loss": 2.0, "val_loss": 1.5, "val_ap": 0.1, "val_ap50": 0.3, "val_miou": 0.25},
    {"epoch": 2, "lr": 0.0005, "train_loss": 1.0, "val_loss": 1.2, "val_ap": 0.2, "val_ap50": 0.4, "val_miou": 0.5},
]


class Finder(nn.Module):
    """Finds what a function of the image's number says; images are plain, of grey 0, 20, 40, ..."""

    def __init__(self, find: Callable[[int], Detections]) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, bias=False)
        self.preprocess = DensePreprocess()
        self.find = find
        self.has_masks = False

    def forward(self, images: list[Tensor]) -> list[Detections]:
        for image in images:
            self.layer(image[None])
        return [self.find(round(float(image.mean()) * 255 / 20)) for image in images]


def objects(boxes: list[list[float]], labels: list[int], crowd: list[bool] | None = None) -> Objects:
    n = len(boxes)
    array = np.array(boxes, np.float32).reshape(-1, 4)
    areas = (array[:, 2] - array[:, 0]) * (array[:, 3] - array[:, 1])
    flags = np.array(crowd if crowd is not None else [False] * n, bool)
    return Objects(array, np.array(labels, np.int64).reshape(n), flags, areas, np.arange(n))


def detections(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Detections:
    return Detections(torch.tensor(boxes).float().reshape(-1, 4), torch.tensor(scores).float(), torch.tensor(labels))


BOX, OTHER = [4.0, 4, 44, 44], [46.0, 46, 60, 60]


def right_until_third(number: int) -> Detections:
    """The first two images are right; in the others only the cell is found, and a rod where there is none."""
    if number < 2:
        return detections([BOX, OTHER], [0.9, 0.8], [0, 1])
    return detections([BOX, [4, 46, 20, 62]], [0.9, 0.8], [0, 1])


def detection_data(folder: Path, images: int = 4, split: str = "test", classes: tuple[str, ...] = NAMES) -> Any:
    samples = []
    for number in range(images):
        path = folder / f"{number}{classes[0].replace('/', '')}.png"
        Image.new("RGB", (SIDE, SIDE), (20 * number,) * 3).save(path)
        samples.append(DetectionSample(path, number + 1, SIDE, SIDE, objects([BOX, OTHER], [0, 1])))
    splits = {"train": tuple(samples), "val": tuple(samples), split: tuple(samples)}
    return DetectionData(str(folder), classes, (1, 2, 7), splits, (f"a note on {classes[0]}",))


def opened_detector(model: nn.Module, classes: tuple[str, ...] = NAMES) -> OpenedDense:
    return OpenedDense("fcos net", model.eval(), classes, model.preprocess, True, "runs/x", "detect", {})  # type: ignore[arg-type]


def opened_segmenter(model: nn.Module, classes: tuple[str, ...] = CLASSES) -> OpenedDense:
    preprocess: Any = model.preprocess
    return OpenedDense("fpn net", model, classes, preprocess, True, "runs/x", "segment", {"colours": COLOURS})


def run_folder(folder: Path, history: list[dict[str, float]] = HISTORY) -> RunFolder:
    run = RunFolder(folder / "run")
    run.path.mkdir()
    with run.metrics.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(HISTORY[0]))
        writer.writeheader()
        writer.writerows(history)
    return run


def detect(folder: Path, data: DetectionData, opened: OpenedDense, split: str = "test", **more: Any) -> str:
    evaluation = replace(evaluate_detection(opened, data, split), **more)
    settings = TrainSettings(data=data.source, task="detect", epochs=2)
    bad = [("bad" + data.classes[0], data.classes[0])]
    page = detection_report(
        run_folder(folder), settings, data, opened, evaluation, bad, ["lr 0.1: why"], torch.device("cpu")
    )
    return page.read_text(encoding="utf-8")


def segment(folder: Path, data: SegmentationData, opened: OpenedDense, split: str = "val") -> str:
    evaluation = evaluate_segmentation(opened, data, split)
    settings = TrainSettings(data=data.source, task="segment", epochs=2)
    page = segmentation_report(run_folder(folder), settings, data, opened, evaluation, [], [], torch.device("cpu"))
    return page.read_text(encoding="utf-8")


def cards(page: Page) -> dict[str, str]:
    return dict(zip(page.within("dl.cards", "/dt."), page.within("dl.cards", "/dd."), strict=True))


def pictures(page: Page) -> list[Image.Image]:
    """Decode every picture of the gallery; in the order of the page annotated, predicted, annotated, ..."""
    uris = [attrs["src"] or "" for tag, attrs in page.tags if tag == "img" and attrs["alt"]]
    gallery = [uri for uri in uris if uri.startswith("data:image/jpeg;base64,")]
    return [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in gallery]


def test_a_detection_page_has_the_figures_of_the_evaluation(tmp_path: Path) -> None:
    data = detection_data(tmp_path)
    opened = opened_detector(Finder(right_until_third))
    result = evaluate_detection(opened, data, "test").result.box
    page = Page(detect(tmp_path, data, opened))
    assert f"{result.ap:.1%}".replace("%", " %") + " AP on 4 held-out images of the test split" in page.text()
    assert f"AP50, at IoU 0.50 alone, is {100 * result.ap50:.1f} %" in page.text()  # type: ignore[operator]
    shown = cards(page)
    assert shown["AP small"] == f"{100 * result.ap_small:.1f} %"  # type: ignore[operator]
    assert shown["AP large"] == "–"  # no object is that large
    assert shown["Parameters"] == str(4 * 3 * 3 * 3)
    assert shown[f"MACs at {SIDE} × {SIDE}"] == f"{4 * 27 * 62 * 62:,}"
    assert shown["Epochs"] == "2"
    rows = page.rows("list classes dense")
    assert [row[:2] for row in rows] == [["rod", "4"], ["cell", "4"], ["dust", "0"]]  # worst first, no figure last
    assert [row[2] for row in rows] == [f"{100 * result.per_class[1]:.1f} %", "100.0 %", "–"]
    assert "The highest validation AP is 20.0 %, in epoch 2." in page.text()
    assert page.within("pre.", "code.") == [f"fullfield train {data.source} --task detect --epochs 2"]
    assert "a note on cell" in page.text()
    assert "Fitted lr 0.1: why." in page.text()
    assert "badcell" in page.within("table.list files")
    assert "by which the best epoch was chosen" not in page.text()


def test_the_pictures_of_a_detector_are_the_worst_first_with_both_sides(tmp_path: Path) -> None:
    data = detection_data(tmp_path)
    page = Page(detect(tmp_path, data, opened_detector(Finder(right_until_third))))
    captions = [text for text in page.within("ul.pairs-of-pictures", "p.under") if "found" in text]
    assert captions == ["1 of 2 objects found, 1 wrong"] * 2 + ["2 of 2 objects found, 0 wrong"] * 2
    assert page.within("p.under", "span.name") == [f"{i}cell.png" for i in (2, 3, 0, 1)]
    shown = pictures(page)
    assert len(shown) == 8
    changed = [
        np.abs(np.asarray(a, int) - np.asarray(b, int)).max() for a, b in zip(shown[::2], shown[1::2], strict=True)
    ]
    assert min(changed) > 40  # scores are written at least
    assert {picture.width for picture in shown} == {480}


def test_pictures_are_spread_from_the_worst_to_the_best(tmp_path: Path) -> None:
    data = detection_data(tmp_path, images=12)
    opened = opened_detector(
        Finder(lambda number: detections([BOX][: number % 2], [0.9][: number % 2], [0][: number % 2]))
    )
    evaluation = evaluate_detection(opened, data, "test")
    shown = detection_pictures(opened, data, evaluation, shown=4)
    assert [picture.caption[:6] for picture in shown] == ["0 of 2", "0 of 2", "1 of 2", "1 of 2"]
    assert shown == detection_pictures(opened, data, evaluation, shown=4)


def test_masks_are_the_headline_and_on_both_pictures_where_they_were_evaluated(tmp_path: Path) -> None:
    data = detection_data(tmp_path, images=2)
    square = np.array([[4, 4], [44, 4], [44, 44], [4, 44]], np.float32)
    outlined = replace(objects([BOX], [0]), masks=((square,),))
    samples = tuple(replace(sample, objects=outlined) for sample in data.splits["test"])
    data = replace(data, splits=dict.fromkeys(("train", "val", "test"), samples))
    mask = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    mask[:, 4:44, 4:30] = True  # IoU 0.65 with the outline, while the box is right
    model = Finder(lambda _: replace(detections([BOX], [0.9], [0]), masks=mask))
    model.has_masks = True
    page = Page(detect(tmp_path, data, opened_detector(model)))
    assert "40.0 % mask AP on 2 held-out images" in page.text()  # right at 0.50, 0.55, 0.60, 0.65 of ten thresholds
    shown = cards(page)
    assert shown["Mask AP75"] == "0.0 %"
    assert shown["Box AP"] == "100.0 %"
    assert page.rows("list classes dense")[0][:4] == ["cell", "2", "40.0 %", "100.0 %"]
    annotated, predicted = (np.asarray(picture, int)[240, 420 * 44 // SIDE] for picture in pictures(page)[:2])
    assert annotated[0] - annotated[1] > 40  # tinted red
    assert abs(predicted[0] - predicted[1]) < 20


def test_a_segmentation_page_has_the_figures_of_the_evaluation(tmp_path: Path) -> None:
    data = write_data(tmp_path)
    page = Page(segment(tmp_path, data, opened_segmenter(Knows())))
    # of 192 labelled pixels 64 each are red, green and blue, and the blue ones look red
    assert "50.0 % mean IoU on 1 held-out images of the validation split" in page.text()
    assert "most frequent class would reach 11.1 % (the mark on the bar)" in page.text()
    shown = cards(page)
    assert shown["Mean accuracy"] == shown["Pixel accuracy"] == "66.7 %"
    assert shown["Parameters"] == "1"
    assert page.rows("list classes dense") == [
        ["blue", "64", "0.0 %", "0.0 %", "red", "100.0 %"],
        ["red", "64", "50.0 %", "100.0 %"],
        ["green", "64", "100.0 %", "100.0 %"],
    ]
    assert page.rows("matrix") == [
        ["red", "100.0", "0", "0"],
        ["green", "0", "100.0", "0"],
        ["blue", "100.0", "0", "0"],
    ]
    assert "66.7 % of the labelled pixels right" in page.text()
    assert "by which the best epoch was chosen" in page.text()
    assert "most frequent class, mIoU" in page.within("svg.")
    assert len(pictures(page)) == 2


def test_many_classes_have_a_heat_map_instead_of_a_table(tmp_path: Path) -> None:
    names = (*CLASSES, *(f"class {i}" for i in range(22)))
    data = replace(write_data(tmp_path), classes=names, colours=(*COLOURS, *[(9, 9, 9)] * 22))
    page = Page(segment(tmp_path, data, opened_segmenter(Knows(), names)))
    assert not page.rows("matrix")
    assert [attrs for tag, attrs in page.tags if (attrs.get("src") or "").startswith("data:image/png")]
    assert len(page.rows("list classes dense")) == 25


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_names_are_shown_and_never_run(task: str, tmp_path: Path) -> None:
    if task == "detect":
        data = detection_data(tmp_path, classes=HOSTILE)
        page = Page(detect(tmp_path, data, opened_detector(Finder(right_until_third), HOSTILE)))
    else:
        found = write_data(tmp_path)
        wrong = write_pair(tmp_path, HOSTILE[0].replace("/", ""), halves(16, 16, 0, 1))
        found = replace(found, classes=HOSTILE, splits={**found.splits, "test": (wrong,)}, notes=(HOSTILE[1],))
        page = Page(segment(tmp_path, found, opened_segmenter(Knows(), HOSTILE), "test"))
        assert set(HOSTILE) <= set(page.within("table.matrix"))
        assert HOSTILE[1] in page.within("ul.notes")
    assert not {"script", "iframe"} & {tag for tag, _ in page.tags}
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert set(HOSTILE) <= set(page.within("table.list classes"))
    assert any("<script>alert(1)" in text for text in page.within("p.under", "span.name"))


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_a_page_makes_no_request(task: str, tmp_path: Path) -> None:
    if task == "detect":
        text = detect(tmp_path, detection_data(tmp_path), opened_detector(Finder(right_until_third)))
    else:
        text = segment(tmp_path, write_data(tmp_path), opened_segmenter(Knows()))
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    page = Page(text)
    targets = [value or "" for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href")]
    assert all(value.startswith(("data:", "#")) for value in targets)
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {value[1:] for value in targets if value.startswith("#")} <= ids
    policy = [attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_pictures_of_noise_and_of_extreme_shapes_keep_the_page_below_two_megabytes(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    samples = []
    for number, (height, width) in enumerate([(400, 600)] * 8 + [(600, 3), (3, 600)]):
        sample = write_pair(tmp_path, str(number), generator.integers(0, 3, (height, width)).astype(np.uint8))
        samples.append(sample)
    data = replace(write_data(tmp_path), splits={"train": tuple(samples), "val": tuple(samples)})
    text = segment(tmp_path, data, opened_segmenter(Knows()))
    assert len(text) < 2e6
    shown = pictures(Page(text))
    assert len(shown) == 16
    assert all(picture.height <= 5 * picture.width for picture in shown)


def test_a_picture_that_cannot_be_read_any_more_is_left_out(tmp_path: Path) -> None:
    data = detection_data(tmp_path)
    opened = opened_detector(Finder(right_until_third))
    evaluation = evaluate_detection(opened, data, "test")
    data.splits["test"][2].path.unlink()
    data.splits["test"][0].path.write_bytes(b"no picture")
    assert [picture.name for picture in detection_pictures(opened, data, evaluation)] == ["3cell.png", "1cell.png"]
    segmented = write_data(tmp_path)
    segmented.splits["train"][0].mask.write_bytes(b"no label map")
    page = Page(segment(tmp_path, segmented, opened_segmenter(Knows()), "train"))
    assert page.within("p.under", "span.name") == ["b.png"]
    assert "a.png" in page.within("table.list files", "code.")[0]


def test_a_run_without_history_and_without_findings_has_dashes(tmp_path: Path) -> None:
    data = detection_data(tmp_path, images=2)
    opened = opened_detector(Finder(lambda _: detections([], [], [])))
    evaluation = evaluate_detection(opened, data, "test")
    run = run_folder(tmp_path, history=[])
    settings, cpu = TrainSettings(data="x"), torch.device("cpu")
    page = Page(detection_report(run, settings, data, opened, evaluation, [], [], cpu).read_text(encoding="utf-8"))
    assert page.text().count("No value was recorded.") == 2
    assert cards(page)["Training time"] == "–"
    assert "0.0 % AP on 2 held-out images" in page.text()


def test_objects_are_matched_once_by_class_and_crowds_excuse() -> None:
    def one(label: int, score: float, *box: float) -> Detection:
        return Detection("x", label, score, (box[0], box[1], box[2], box[3]))

    true = objects([BOX, OTHER, [100, 0, 200, 100]], [0, 1, 1], [False, False, True])
    assert objects_found(true, []) == (0, 0)
    assert objects_found(true, [one(0, 0.9, *BOX), one(1, 0.8, *OTHER)]) == (2, 0)
    assert objects_found(true, [one(0, 0.9, *BOX), one(0, 0.8, *BOX)]) == (1, 1)  # twice the same
    assert objects_found(true, [one(1, 0.9, *BOX)]) == (0, 1)  # another class
    assert objects_found(true, [one(0, 0.9, 4, 4, 44, 23)]) == (0, 1)  # IoU 19 / 40
    assert objects_found(true, [one(1, 0.9, 120, 20, 130, 30), one(0, 0.9, 120, 20, 130, 30)]) == (0, 1)  # in a crowd
    assert objects_found(objects([], []), [one(0, 0.9, *BOX)]) == (0, 1)


def test_real_small_models_are_reported_with_their_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    (tmp_path / "segment").mkdir()
    preprocess = DensePreprocess(short_side=64, long_side=64)
    detector = Detector("racnn_pico", "fcos", 3, preprocess=preprocess, head_arguments={"fpn_channels": 16}).eval()
    shown = cards(Page(detect(tmp_path, detection_data(tmp_path, images=1), opened_detector(detector))))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        detector([torch.zeros(3, 64, 64)])
    assert shown["MACs at 64 × 64"] == f"{counter.get_total_flops() / 2e6:.3g} M"
    assert shown["Parameters"] == f"{sum(p.numel() for p in detector.parameters()) / 1e6:.3g} M"
    segmenter = Segmenter("racnn_pico", "fpn", 3, preprocess=DensePreprocess()).eval()
    page = Page(segment(tmp_path / "segment", write_data(tmp_path / "segment"), opened_segmenter(segmenter)))
    assert "MACs at 16 × 16" in cards(page)
    assert len(pictures(page)) == 2


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_extra_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fullfield\[train\]'"):
        segment(tmp_path, write_data(tmp_path), opened_segmenter(Knows()))
    assert not (tmp_path / "run" / "report.html").exists()
