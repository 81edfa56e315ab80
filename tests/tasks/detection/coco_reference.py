"""Made-up objects and detections, and the figures that COCO's own code gives them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fullfield.data.detection.objects import DetectionSample, Objects
from fullfield.tasks.detection.average_precision import APFigures, DetectionMetrics, DetectionResult
from fullfield.tasks.detection.detections import Detections

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
NAN = float("nan")
H, W = 120, 160


def ellipse(box: np.ndarray, height: int, width: int) -> np.ndarray:
    """A mask that fills its box as a cell does."""
    left, top, right, bottom = box
    y, x = np.mgrid[:height, :width] + 0.5
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    return ((x - middle_x) / max(right - left, 1)) ** 2 + ((y - middle_y) / max(bottom - top, 1)) ** 2 <= 0.25


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed run lengths, counted down the columns by the definition."""
    flat = mask.T.reshape(-1).astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def sample_of(
    image_id: int, boxes: Any, labels: Any, *, crowd: Any = None, masks: Any = None, size: tuple[int, int] = (H, W)
) -> DetectionSample:
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    if masks is not None:
        areas = np.array([mask.sum() for mask in masks], dtype=np.float32)
    objects = Objects(
        boxes,
        np.asarray(labels, dtype=np.int64),
        np.zeros(len(boxes), bool) if crowd is None else np.asarray(crowd, dtype=bool),
        areas,
        np.arange(len(boxes)),
        None if masks is None else tuple(run_lengths(mask) for mask in masks),
    )
    return DetectionSample(Path(f"{image_id}.jpg"), image_id, size[0], size[1], objects)


def found_of(boxes: Any, scores: Any, labels: Any, masks: Any = None) -> Detections:
    return Detections(
        torch.as_tensor(np.asarray(boxes, dtype=np.float32)).reshape(-1, 4),
        torch.as_tensor(np.asarray(scores, dtype=np.float32)),
        torch.as_tensor(np.asarray(labels, dtype=np.int64)),
        None if masks is None else torch.as_tensor(np.asarray(masks, dtype=bool).reshape(-1, H, W)),
    )


def random_boxes(random: np.random.Generator, count: int) -> np.ndarray:
    sides = random.uniform(4, 110, (count, 2)) * random.uniform(0.1, 1, (count, 1))
    corner = random.uniform(0, 1, (count, 2)) * ([W, H] - sides)
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)


def random_data(seed: int, *, images: int = 30, classes: int = 4) -> tuple[list[DetectionSample], list[Detections]]:
    """Images with crowds, without objects, with crowds alone, and detections that are near, wrong, doubled or absent.

    Scores are few, so that many are equal; the last class is never there.
    """
    random = np.random.default_rng(seed)
    samples, found = [], []
    for number in range(images):
        boxes = random_boxes(random, 0 if number % 7 == 0 else int(random.integers(1, 9)))
        labels = random.integers(0, classes - 1, len(boxes))
        crowd = random.random(len(boxes)) < (1.0 if number % 11 == 5 else 0.15)
        masks = [ellipse(box, H, W) for box in boxes]
        samples.append(sample_of(3 * number, boxes, labels, crowd=crowd, masks=masks))
        near = boxes.repeat(2, axis=0) + random.normal(0, 3, (2 * len(boxes), 4))
        guesses = np.concatenate([near, random_boxes(random, 3)])
        guesses = np.clip(np.concatenate([guesses[:, :2], np.maximum(guesses[:, 2:], guesses[:, :2] + 1)], 1), 0, W)
        guesses = guesses if number % 5 else guesses[:0]
        guessed = np.concatenate([labels.repeat(2), random.integers(0, classes, 3)])[: len(guesses)]
        scores = np.sort(np.round(random.random(len(guesses)), 1))[::-1]
        found.append(found_of(guesses, scores, guessed, [ellipse(box, H, W) for box in guesses]))
    return samples, found


def measured(samples: list[DetectionSample], found: list[Detections], classes: int, masks: bool) -> DetectionResult:
    metrics = DetectionMetrics([f"class {label}" for label in range(classes)], masks=masks)
    for start in range(0, len(samples), 4):
        metrics.update(samples[start : start + 4], found[start : start + 4])
    return metrics.compute()


def truth_document(samples: list[DetectionSample], classes: int) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for sample in samples:
        objects = sample.objects
        for index, box in enumerate(objects.boxes.astype(float).tolist()):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": sample.image_id,
                    "category_id": int(objects.labels[index]),
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "area": float(objects.areas[index]),
                    "iscrowd": int(objects.crowd[index]),
                    **({} if objects.masks is None else {"segmentation": objects.masks[index]}),
                }
            )
    return {
        "images": [{"id": s.image_id, "height": s.height, "width": s.width} for s in samples],
        "categories": [{"id": label} for label in range(classes)],
        "annotations": annotations,
    }


def pycocotools_figures(
    document: dict[str, Any], image_ids: list[int], numbers: list[int], found: list[Detections], kind: str
) -> tuple[list[float], list[float]]:
    """The six AP, AR100 (-1 where there is no object), and AP of each class (NaN), by COCO's own code."""
    mask_tools = pytest.importorskip("pycocotools.mask")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    results = []
    for image_id, one in zip(image_ids, found, strict=True):
        for index in range(len(one)):
            left, top, right, bottom = one.boxes[index].tolist()
            result = {"image_id": image_id, "category_id": numbers[int(one.labels[index])]}
            result["score"] = float(one.scores[index])
            if kind == "segm":
                assert one.masks is not None
                result["segmentation"] = mask_tools.encode(np.asfortranarray(one.masks[index].numpy().astype(np.uint8)))
            else:
                result["bbox"] = [left, top, right - left, bottom - top]
            results.append(result)
    with contextlib.redirect_stdout(None):
        truth = COCO()
        truth.dataset = document
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = evaluation.stats.tolist()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class = [p[p > -1].mean() if (p > -1).any() else NAN for p in np.moveaxis(precision, 2, 0)]
    return [*stats[:6], stats[8]], per_class


def assert_equal(ours: APFigures | None, theirs: tuple[list[float], list[float]], tolerance: float) -> None:
    assert ours is not None
    got = [getattr(ours, name) for name in (*NAMES, "ar100")]
    np.testing.assert_allclose([-1 if v is None else v for v in got], theirs[0], rtol=0, atol=tolerance)
    np.testing.assert_allclose(ours.per_class, theirs[1], rtol=0, atol=tolerance)
