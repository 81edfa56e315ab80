"""Find objects in images with a trained detector: a COCO file, a table, and drawn pictures."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from fullfield.data import read_image
from fullfield.errors import ConfigError, ImageError
from fullfield.files import atomic_write, write_error, write_json
from fullfield.progress import image_progress
from fullfield.tasks.detection.coco_form import Detection, coco_document, named_objects
from fullfield.tasks.detection.draw import draw_detections
from fullfield.tasks.detection.evaluate import OpenedDetector
from fullfield.tasks.predict import find_images, picture_name

__all__ = ["Detection", "DetectionPrediction", "predict_detection", "save_detection_predictions"]


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


def predict_detection(
    opened: OpenedDetector,
    images: str | Path | Sequence[str | Path],
    *,
    threshold: float = 0.3,
    batch_size: int = 4,
) -> list[DetectionPrediction]:
    """Find objects in images.

    Args:
        opened: The model with its classes.
        images: Files and folders (searched through); one or several.
        threshold: Objects with a lower score are left out, 0 to 1.
        batch_size: Images at a time.

    Returns:
        One prediction an image, in order. An image that can't be read has no objects, and says why.

    Raises:
        ConfigError: An argument has an impossible value.
        DataError: A path does not exist, or a folder holds no image.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    if not 0 <= threshold <= 1:
        raise ConfigError(f"threshold is {threshold}; scores go from 0 to 1")
    files = find_images([images] if isinstance(images, str | Path) else images)
    results: list[DetectionPrediction] = []
    with torch.inference_mode(), image_progress("predicting", len(files)) as advance:
        for start in range(0, len(files), batch_size):
            chunk = files[start : start + batch_size]
            results += _predict_batch(opened, chunk, threshold)
            advance(len(chunk))
    return results


def _predict_batch(opened: OpenedDetector, files: Sequence[Path], threshold: float) -> list[DetectionPrediction]:
    device = next(opened.model.parameters()).device
    tensors: dict[Path, Tensor] = {}
    errors: dict[Path, str] = {}
    for file in files:
        try:
            tensors[file] = _to_tensor(read_image(file), opened.model.preprocess.channels).to(device)
        except ImageError as error:
            errors[file] = str(error)
    found = dict(zip(tensors, opened.model(list(tensors.values())), strict=True)) if tensors else {}
    return [
        DetectionPrediction(file, (), None, errors[file])
        if file in errors
        else DetectionPrediction(
            file,
            named_objects(found[file], opened.classes, threshold=threshold),
            (tensors[file].shape[1], tensors[file].shape[2]),
        )
        for file in files
    ]


def _to_tensor(image: Image.Image, channels: int) -> Tensor:
    """Return an RGB image as (channels, H, W) float32, 0 to 1."""
    pixels = F.pil_to_tensor(image if channels == 3 else image.convert("L"))
    tensor: Tensor = F.to_dtype(pixels, torch.float32, scale=True)
    return tensor


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
