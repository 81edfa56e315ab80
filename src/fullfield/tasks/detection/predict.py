"""Find objects in images with a trained detector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from fullfield.data import read_image
from fullfield.errors import ConfigError, ImageError
from fullfield.progress import image_progress
from fullfield.tasks.answers import find_images
from fullfield.tasks.detection.answers import DetectionPrediction
from fullfield.tasks.detection.coco_form import Detection, named_objects
from fullfield.tasks.detection.evaluate import OpenedDetector

__all__ = ["objects_in", "predict_detection"]


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
    images: dict[Path, Image.Image] = {}
    errors: dict[Path, str] = {}
    for file in files:
        try:
            images[file] = read_image(file)
        except ImageError as error:
            errors[file] = str(error)
    found = dict(zip(images, objects_in(opened, list(images.values()), threshold), strict=True))
    return [
        DetectionPrediction(file, (), None, errors[file])
        if file in errors
        else DetectionPrediction(file, found[file], (images[file].height, images[file].width))
        for file in files
    ]


def objects_in(opened: OpenedDetector, images: Sequence[Image.Image], threshold: float) -> list[tuple[Detection, ...]]:
    """Return the objects in each image, the most certain first, in its own pixels.

    Args:
        opened: The model; it looks at all images at once.
        images: Upright RGB images of any sizes, maybe none.
        threshold: Objects with a lower score are left out, 0 to 1.
    """
    if not images:
        return []
    device = next(opened.model.parameters()).device
    with torch.inference_mode():
        found = opened.model([_to_tensor(image, opened.model.preprocess.channels).to(device) for image in images])
    return [named_objects(one, opened.classes, threshold=threshold) for one in found]


def _to_tensor(image: Image.Image, channels: int) -> Tensor:
    """Return an RGB image as (channels, H, W) float32, 0 to 1."""
    pixels = F.pil_to_tensor(image if channels == 3 else image.convert("L"))
    tensor: Tensor = F.to_dtype(pixels, torch.float32, scale=True)
    return tensor
