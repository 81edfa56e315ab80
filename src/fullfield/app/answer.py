"""One model's answer about one picture, as the page shows it: labels with bars, or a drawn picture with figures."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from fullfield.app.pieces import render
from fullfield.app.shelf import Shelved
from fullfield.errors import ImageError
from fullfield.tasks.answers import Prediction
from fullfield.tasks.detection.answers import DetectionPrediction
from fullfield.tasks.detection.draw import draw_detections
from fullfield.tasks.segmentation.answers import SegmentationPrediction
from fullfield.tasks.segmentation.draw import draw_segmentation

__all__ = ["Answer", "answer"]

ROWS = 50  # objects in the table; a phone would scroll for ever
CLASSES = 12  # shares of a segmentation; the drawn picture's legend has more


@dataclass(frozen=True)
class Answer:
    """What the page shows."""

    picture: Image.Image | None
    """With boxes, masks or outlines; None of a classifier."""
    html: str


def answer(model: Shelved, image: Image.Image, name: str, *, threshold: float) -> Answer:
    """Ask a model about a picture.

    Args:
        model: Of the shelf.
        image: Upright, RGB.
        name: What the visitor calls it.
        threshold: Of detectors: objects with a lower score are left out, 0 to 1.

    Raises:
        ImageError: The model can't take this picture.
        ConfigError: The threshold is impossible.
    """
    predictor = model.predictor
    start = time.perf_counter()
    (found,) = predictor.answer([image], [name], top=5, threshold=threshold)
    how = f"{predictor.engine}, {time.perf_counter() - start:.2f}\N{NO-BREAK SPACE}s"
    if found.error is not None:
        raise ImageError(found.error)
    if isinstance(found, Prediction):
        return Answer(None, _bars(model, how, "classes", found.labels))
    if isinstance(found, DetectionPrediction):
        return _of_objects(model, image, found, how, threshold)
    return _of_pixels(model, image, found, how)


def _of_objects(model: Shelved, image: Image.Image, found: DetectionPrediction, how: str, threshold: float) -> Answer:
    counts = Counter(one.name for one in found.detections).most_common()
    told = ", ".join(f"{number} {name}" for name, number in counts)
    many = len(found.detections)
    summary = f"{many} object{'s' if many > 1 else ''}: {told}."
    html = render(
        "objects",
        model=model.label,
        how=how,
        summary=summary if many else f"No object scores {threshold:.2f} or more.",
        rows=found.detections[:ROWS],
        left_out=max(0, many - ROWS),
        trained=model.predictor.trained,
    )
    return Answer(draw_detections(image, found.detections), html)


def _of_pixels(model: Shelved, image: Image.Image, found: SegmentationPrediction, how: str) -> Answer:
    predictor = model.predictor
    assert found.labels is not None  # noqa: S101 - it has no error, so it has labels
    html = _bars(model, how, "classes with their share of the picture", found.shares[:CLASSES])
    return Answer(draw_segmentation(image, found.labels, predictor.classes, predictor.colours), html)


def _bars(model: Shelved, how: str, what: str, rows: Sequence[tuple[str, float]]) -> str:
    return render("shares", model=model.label, how=how, what=what, rows=rows, trained=model.predictor.trained)
