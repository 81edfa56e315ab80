"""What a detector found in images: a COCO file, a table, and drawn pictures; needs no PyTorch."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fullfield.data import read_image
from fullfield.files import atomic_write, write_error, write_json
from fullfield.tasks.answers import picture_name
from fullfield.tasks.detection.coco_form import Detection, coco_document
from fullfield.tasks.detection.draw import draw_detections

__all__ = ["Detection", "DetectionPrediction", "save_detection_predictions"]


@dataclass(frozen=True)
class DetectionPrediction:
    """What a detector found in one image.

    Attributes:
        path: The file.
        detections: The objects, the most certain first; empty if there are none or the image can't be read.
        size: Height and width of the upright image, pixels; None if it can't be read.
        error: Why it can't be read.
    """

    path: Path
    detections: tuple[Detection, ...]
    size: tuple[int, int] | None
    error: str | None = None


def save_detection_predictions(
    predictions: Sequence[DetectionPrediction], folder: str | Path, *, classes: Sequence[str], draw: bool = True
) -> Path:
    """Write `predictions.json`, `predictions.csv` and one drawn picture an image into a folder, and return it.

    The JSON is a COCO annotation file with scores, which annotation tools read. The table has one row an object, and
    one row without a class for an image with no object or that can't be read; boxes are in pixels.

    Args:
        predictions: As `predict_detection` returns them.
        folder: Made if it does not exist; files of those names are replaced.
        classes: The model's; they become the categories, numbered from 1.
        draw: Whether to draw the pictures.

    Raises:
        ConfigError: An object is of a class that is not listed.
        RunError: The folder can't be written or the disk is full.
    """
    document = coco_document(predictions, classes)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
    write_json(folder / "predictions.json", document)
    with (
        atomic_write(folder / "predictions.csv") as partial,
        partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["path", "class", "score", "left", "top", "right", "bottom", "error"])
        for prediction in predictions:
            writer.writerows(_rows(prediction))
    if draw:
        for prediction in predictions:
            if prediction.size is not None:
                with atomic_write(folder / picture_name(prediction.path)) as partial:
                    draw_detections(read_image(prediction.path), prediction.detections).save(partial, format="PNG")
    return folder


def _rows(prediction: DetectionPrediction) -> list[list[Any]]:
    if not prediction.detections:
        return [[prediction.path, "", "", "", "", "", "", prediction.error or ""]]
    return [
        [prediction.path, one.name, f"{one.score:.4f}", *(f"{edge:.1f}" for edge in one.box), ""]
        for one in prediction.detections
    ]
