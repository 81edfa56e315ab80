"""Average precision of boxes and masks, against pycocotools on the same predictions."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fullfield.data.detection.objects import DetectionSample, Objects
from fullfield.errors import ConfigError, DataError, MissingExtraError
from fullfield.tasks.detection.average_precision import APFigures, DetectionMetrics
from fullfield.tasks.detection.detections import Detections
from tests.tasks.detection.coco_reference import (
    NAMES,
    NAN,
    H,
    W,
    assert_equal,
    ellipse,
    found_of,
    measured,
    pycocotools_figures,
    random_data,
    sample_of,
    truth_document,
)

pytest.importorskip("faster_coco_eval", reason="needs fullfield[detect]")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_figures_equal_pycocotools_with_crowds_empty_images_and_equal_scores(seed: int) -> None:
    samples, found = random_data(seed)
    result = measured(samples, found, 4, masks=True)
    ids = [sample.image_id for sample in samples]
    for kind, ours in (("bbox", result.box), ("segm", result.mask)):
        theirs = pycocotools_figures(truth_document(samples, 4), ids, [0, 1, 2, 3], found, kind)
        assert_equal(ours, theirs, 1e-9)
        assert 0.05 < theirs[0][0] < 0.9  # a comparison of zeros would say nothing
    assert math.isnan(result.box.per_class[3])
    assert result.images == 30


def real_data(
    annotations_file: Path, images: int
) -> tuple[dict[str, Any], list[DetectionSample], list[Detections], list[int]]:
    """The first images of a val split with most crowds first, and detections made of its objects by a fixed seed."""
    mask_tools = pytest.importorskip("pycocotools.mask")
    document = json.loads(annotations_file.read_text())
    by_image: dict[int, list[dict[str, Any]]] = {one["id"]: [] for one in document["images"]}
    for annotation in document["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    document["images"].sort(key=lambda one: -sum(a["iscrowd"] for a in by_image[one["id"]]))
    document["images"] = document["images"][:images]
    kept = {one["id"] for one in document["images"]}
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] in kept]
    numbers = sorted(category["id"] for category in document["categories"])
    random = np.random.default_rng(0)
    samples, found = [], []
    for one in document["images"]:
        height, width, annotations = one["height"], one["width"], by_image[one["id"]]
        outlines: list[Any] = []
        masks = []
        for annotation in annotations:
            outline = annotation["segmentation"]
            if isinstance(outline, list):
                outlines.append(tuple(np.array(polygon, dtype=np.float32).reshape(-1, 2) for polygon in outline))
                rle = mask_tools.merge(mask_tools.frPyObjects(outline, height, width))
            else:
                outlines.append(outline)
                counts = outline["counts"]
                rle = mask_tools.frPyObjects(outline, height, width) if isinstance(counts, list) else outline
            masks.append(mask_tools.decode(rle).astype(bool))
        boxes = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        objects = Objects(
            boxes.astype(np.float32),
            np.array([numbers.index(a["category_id"]) for a in annotations], dtype=np.int64),
            np.array([a["iscrowd"] for a in annotations], dtype=bool),
            np.array([a["area"] for a in annotations], dtype=np.float32),
            np.array([a["id"] for a in annotations]),
            tuple(outlines),
        )
        samples.append(DetectionSample(Path(one["file_name"]), one["id"], height, width, objects))
        there = np.flatnonzero(random.random(len(boxes)) < 0.8)
        shifts = random.integers(-3, 4, (len(there), 2))
        moved = [np.roll(masks[i], tuple(s), (0, 1)) for i, s in zip(there, shifts, strict=True)]
        labels = np.where(random.random(len(there)) < 0.8, objects.labels[there], random.integers(0, len(numbers)))
        scores = np.sort(random.random(len(there)))[::-1]
        shifted = (boxes[there] + random.normal(0, 3, (len(there), 4))).astype(np.float32)
        shifted[:, 2:] = np.maximum(shifted[:, 2:], shifted[:, :2] + 1)
        stack = np.stack(moved) if moved else np.zeros((0, height, width), bool)
        found.append(
            Detections(
                torch.from_numpy(shifted), torch.from_numpy(scores.astype(np.float32)), torch.from_numpy(labels),
                torch.from_numpy(stack),
            )
        )  # fmt: skip
    return document, samples, found, numbers


@pytest.mark.parametrize(
    ("name", "images"),
    [("coco_cc/annotations/instances_val2017.json", 40), ("nuclei_coco/instances_val.json", 8)],
)
def test_figures_equal_pycocotools_on_real_annotations(name: str, images: int, shared_data: Path) -> None:
    document, samples, found, numbers = real_data(shared_data / name, images)
    result = measured(samples, found, len(numbers), masks=True)
    ids = [sample.image_id for sample in samples]
    for kind, ours in (("bbox", result.box), ("segm", result.mask)):
        theirs = pycocotools_figures(document, ids, numbers, found, kind)
        assert_equal(ours, theirs, 1e-9)
        assert 0.05 < theirs[0][0] < 0.95


def test_copies_of_the_objects_have_an_ap_of_one() -> None:
    boxes = [[0, 0, 20, 20], [30, 10, 90, 70], [0, 0, 120, 110]]
    result = measured([sample_of(1, boxes, [0, 1, 1])], [found_of(boxes, [0.9, 0.8, 0.7], [0, 1, 1])], 2, masks=False)
    assert result.box == APFigures(*[pytest.approx(1.0)] * 7, per_class=pytest.approx((1.0, 1.0)))
    assert result.mask is None
    assert result.scalars() == {"images": 1.0, **{name: pytest.approx(1.0) for name in (*NAMES, "ar100")}}


def test_sizes_without_an_object_have_no_figure() -> None:
    boxes = [[0, 0, 20, 20]]
    result = measured([sample_of(1, boxes, [0])], [found_of(boxes, [0.9], [0])], 2, masks=False)
    assert (result.box.ap_small, result.box.ap_medium, result.box.ap_large) == (pytest.approx(1.0), None, None)
    assert "ap_large" not in result.scalars()
    np.testing.assert_allclose(result.box.per_class, [1.0, NAN])


def test_score_is_of_masks_where_there_are_masks() -> None:
    box = np.array([10, 10, 90, 90])
    mask, half = ellipse(box, H, W), ellipse(box, H, W)
    half[:, 50:] = False
    samples = [sample_of(1, [box], [0], masks=[mask])]
    result = measured(samples, [found_of([box], [0.9], [0], [half])], 1, masks=True)
    assert result.box.ap == pytest.approx(1.0)
    assert result.score == result.scalars()["mask_ap"] < 0.2
    assert measured(samples, [found_of([box], [0.9], [0], [half])], 1, masks=False).score == pytest.approx(1.0)


NOTHING = found_of([], [], [])


@pytest.mark.parametrize(
    ("samples", "found", "ap"),
    [
        ([], [], None),
        ([sample_of(1, [], [])], [NOTHING], None),
        ([sample_of(1, [], [])], [found_of([[1, 1, 5, 5]], [0.9], [0])], None),
        ([sample_of(1, [[1, 1, 5, 5]], [0], crowd=[True])], [found_of([[1, 1, 5, 5]], [0.9], [0])], None),
        ([sample_of(1, [[1, 1, 5, 5]], [0])], [NOTHING], 0.0),
    ],
    ids=["no images", "nothing at all", "no truth", "only a crowd", "no detections"],
)
def test_score_is_0_where_there_is_nothing(samples: Any, found: Any, ap: float | None) -> None:
    result = measured(samples, found, 2, masks=False)
    assert result.box.ap == ap
    assert result.score == 0.0
    assert result.images == len(samples)
    masked = [
        found_of(one.boxes, one.scores, one.labels, [ellipse(b, H, W) for b in one.boxes.numpy()]) for one in found
    ]
    outlined = [
        sample_of(s.image_id, s.objects.boxes, s.objects.labels, crowd=s.objects.crowd,
                  masks=[ellipse(b, H, W) for b in s.objects.boxes])
        for s in samples
    ]  # fmt: skip
    result = measured(outlined, masked, 2, masks=True)
    assert result.mask is not None
    assert result.mask.ap == ap


def test_order_of_images_does_not_matter() -> None:
    samples, found = random_data(3, images=12)
    forward, backward = measured(samples, found, 4, masks=True), measured(samples[::-1], found[::-1], 4, masks=True)
    assert forward.scalars() == backward.scalars()


def test_image_that_is_given_twice_counts_once() -> None:
    samples, found = random_data(4, images=10)
    once = measured(samples, found, 4, masks=False)
    twice = measured([*samples, *samples[:3]], [*found, *found[:3]], 4, masks=False)
    assert once.scalars() == twice.scalars()


def test_images_of_one_number_in_two_files_are_two_images() -> None:
    first = sample_of(1, [[1, 1, 30, 30]], [0])
    second = DetectionSample(Path("other/1.jpg"), 1, H, W, first.objects)
    right, wrong = found_of([[1, 1, 30, 30]], [0.5], [0]), NOTHING
    result = measured([first, second], [right, wrong], 1, masks=False)
    assert result.images == 2
    assert result.box.ar100 == pytest.approx(0.5)


def test_reset_starts_over() -> None:
    metrics = DetectionMetrics(["cell"])
    metrics.update([sample_of(1, [[1, 1, 30, 30]], [0])], [NOTHING])
    metrics.reset()
    metrics.update([sample_of(2, [[1, 1, 30, 30]], [0])], [found_of([[1, 1, 30, 30]], [0.5], [0])])
    assert metrics.compute().images == 1
    assert metrics.compute().score == pytest.approx(1.0)


@pytest.mark.parametrize("box", [[NAN, 1, 30, 30], [1, 1, math.inf, 30], [-math.inf, 1, 30, 30]])
def test_box_that_is_not_finite_counts_as_wrong(box: list[float]) -> None:
    truth = [sample_of(1, [[1, 1, 30, 30]], [0])]
    assert measured(truth, [found_of([box], [0.9], [0])], 1, masks=False).score == 0.0
    beside = found_of([box, [1, 1, 30, 30]], [0.9, 0.8], [0, 0])
    assert measured(truth, [beside], 1, masks=False).box.ap50 == pytest.approx(0.5)


def test_score_that_is_not_finite_comes_last() -> None:
    truth = [sample_of(1, [[1, 1, 30, 30]], [0])]
    both = found_of([[50, 50, 80, 80], [1, 1, 30, 30]], [NAN, 0.2], [0, 0])
    assert measured(truth, [both], 1, masks=False).score == pytest.approx(1.0)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    measured(*random_data(0, images=5), 4, masks=True)
    assert capfd.readouterr() == ("", "")


def test_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fullfield\[detect\]'"):
        DetectionMetrics(["cell"])


def test_what_does_not_fit_together_is_refused() -> None:
    metrics = DetectionMetrics(["cell"])
    sample, found = sample_of(1, [[1, 1, 30, 30]], [0]), found_of([[1, 1, 30, 30]], [0.5], [1])
    with pytest.raises(ConfigError, match="1 images and detections of 0"):
        metrics.update([sample], [])
    with pytest.raises(ConfigError, match=r"1\.jpg: label 1 was predicted; there are 1 classes"):
        metrics.update([sample], [found])
    outlined = DetectionMetrics(["cell", "rod"], masks=True)
    with pytest.raises(DataError, match=r"1\.jpg: has 1 objects without outlines"):
        outlined.update([sample], [found])
    with pytest.raises(ConfigError, match=r"2\.jpg: the model found boxes without masks"):
        outlined.update([sample_of(2, [], [])], [found])
    wrong = Detections(found.boxes, found.scores, found.labels, torch.zeros(1, 5, 7, dtype=torch.bool))
    with pytest.raises(ConfigError, match=f"the masks have 5 × 7 pixels and the image {H} × {W}"):
        outlined.update([sample_of(2, [], [])], [wrong])


def test_figures_of_two_processes_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """7 images in one process and 5 in the other, one of them in both."""
    samples, found = random_data(5, images=11)
    classes = [str(label) for label in range(4)]
    both = []
    for own in (range(7), range(6, 11)):
        metrics = DetectionMetrics(classes, masks=True, synced=True)
        metrics.update([samples[i] for i in own], [found[i] for i in own])
        both.append(metrics)
    assert [metrics.compute().images for metrics in both] == [7, 5]  # no processes were started: each is alone

    def all_gather_object(gathered: list[Any], one: Any) -> None:
        gathered[:] = [pickle.loads(pickle.dumps(metrics._counted)) for metrics in both]  # noqa: S301 - our own bytes

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
    together = measured(samples, found, 4, masks=True)
    for metrics in both:
        assert metrics.compute().scalars() == together.scalars()
    alone = DetectionMetrics(classes, masks=True)
    alone.update(samples[:2], found[:2])
    assert alone.compute().images == 2


_TWO_PROCESSES = """
import sys
import torch
from tests.tasks.detection.coco_reference import random_data
from fullfield.tasks.detection.average_precision import DetectionMetrics

rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
samples, found = random_data(5, images=11)
metrics = DetectionMetrics([str(label) for label in range(4)], masks=True, synced=True)
own = range(7) if rank else range(6, 11)  # image 6 twice, and 7 images against 5
metrics.update([samples[i] for i in own], [found[i] for i in own])
print(sorted(metrics.compute().scalars().items()))
alone = DetectionMetrics([str(label) for label in range(4)], masks=True)
alone.update([samples[i] for i in own], [found[i] for i in own])
print(alone.compute().images)
"""


@pytest.mark.slow
def test_two_real_processes_have_the_figures_of_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _TWO_PROCESSES]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "meeting")],
            cwd=Path(__file__).parents[3],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    together = measured(*random_data(5, images=11), 4, masks=True)
    assert told[0][0] == told[1][0] == str(sorted(together.scalars().items()))
    assert [int(lines[1]) for lines in told] == [5, 7]
