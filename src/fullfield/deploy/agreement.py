"""How far the answers of an exported file are those of the PyTorch model: classes, pixels or objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from fullfield.deploy.photographs import Photographs
from fullfield.deploy.predictor import Predictor
from fullfield.deploy.verification import Agreement
from fullfield.tasks.detection.answers import Detection
from fullfield.tasks.open import OpenedDense
from fullfield.tasks.source import OpenedModel

__all__ = ["measure_agreement", "paired_objects"]

KINDS = {"classify": "top-1", "segment": "pixels", "detect": "objects"}
AT_ONCE = 4
SAME_BOX = 0.8  # intersection over union
SAME_SCORE = 0.1
LEAST_SCORE = 0.05  # an object that is less sure is noise on either side


def measure_agreement(predictor: Predictor, opened: OpenedModel | OpenedDense, photographs: Photographs) -> Agreement:
    """Compare the answers of a file with those of the model in PyTorch, image by image.

    Args:
        predictor: Of the file: what a user runs, its own way of preparing images included.
        opened: The model.
        photographs: What both look at.

    Raises:
        DataError: Not one image can be read.
    """
    equal, answers, images = 0, 0, 0
    classes: set[Any] = set()
    for batch in _batches(photographs):
        theirs = predictor.answer(batch, top=1, threshold=LEAST_SCORE)
        for a, b in zip(theirs, _eager_answers(opened, batch), strict=True):
            same, compared = _compare(opened.task, a, b)
            classes |= _classes(opened.task, b)
            equal, answers, images = equal + same, answers + compared, images + 1
    share = equal / answers if answers else 1.0
    unreadable = len(photographs) - images
    return Agreement(KINDS[opened.task], share, images, photographs.source, answers, len(classes), unreadable)


def paired_objects(found: Sequence[Detection], expected: Sequence[Detection]) -> int:
    """Return how many objects of one list are in the other, each used once, the surest first.

    Two objects are the same where the class is, the boxes overlap by at least 0.8 (intersection over union), and the
    scores are within 0.1.
    """
    left = list(expected)
    pairs = 0
    for one in sorted(found, key=lambda each: -each.score):
        near = [other for other in left if other.label == one.label and abs(other.score - one.score) <= SAME_SCORE]
        best = max(near, key=lambda other: _overlap(one.box, other.box), default=None)
        if best is not None and _overlap(one.box, best.box) >= SAME_BOX:
            left.remove(best)
            pairs += 1
    return pairs


def _compare(task: str, found: Any, expected: Any) -> tuple[int, int]:
    """Return how many answers about one image are equal, and of how many."""
    if task == "classify":
        return int(found.labels[0][0] == expected), 1
    if task == "segment":
        return int(np.sum(found.labels == expected)), int(expected.size)
    return 2 * paired_objects(found.detections, expected), len(found.detections) + len(expected)


def _classes(task: str, expected: Any) -> set[Any]:
    """Return which classes an answer of PyTorch's names."""
    if task == "classify":
        return {expected}
    return set(np.unique(expected).tolist()) if task == "segment" else {one.label for one in expected}


def _eager_answers(opened: OpenedModel | OpenedDense, images: Sequence[Image.Image]) -> list[Any]:
    """Return what `fullfield predict` says with the model itself: class names, objects or labels of each image."""
    if isinstance(opened, OpenedModel):
        from fullfield.tasks.predict import likeliest_classes

        return [labels[0][0] for labels in likeliest_classes(opened, images, 1)]
    if opened.task == "detect":
        from fullfield.tasks.detection.predict import objects_in

        return [objects_in(opened, [image], LEAST_SCORE)[0] for image in images]
    from fullfield.tasks.segmentation.predict import labels_of

    return [labels_of(opened, image) for image in images]


def _batches(photographs: Photographs) -> Iterator[list[Image.Image]]:
    batch: list[Image.Image] = []
    for image in photographs.read():
        batch.append(image)
        if len(batch) == AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Return the intersection over union of two boxes (left, top, right, bottom)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inside = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside
    return inside / union if union > 0 else 0.0
