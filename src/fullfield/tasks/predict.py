"""Predict the class of images with a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from fullfield.data import eval_transform, read_image
from fullfield.errors import ConfigError, ImageError
from fullfield.progress import image_progress
from fullfield.tasks.answers import Prediction, find_images
from fullfield.tasks.source import OpenedModel, open_model

__all__ = ["likeliest_classes", "predict"]


def predict(
    source: str | Path | OpenedModel,
    images: str | Path | Sequence[str | Path],
    *,
    top: int = 5,
    batch_size: int = 16,
    device: str = "auto",
    pretrained: bool = False,
) -> list[Prediction]:
    """Predict the classes of images.

    Args:
        source: A run folder, a checkpoint file, a registered name, or what `open_model` returned.
        images: Files and folders (searched through); one or several.
        top: How many classes to name for each image.
        batch_size: Images at a time.
        device: "auto", "cpu", "cuda", ...
        pretrained: For a registered name: fetch timm's weights.

    Returns:
        One prediction an image, in order. An image that can't be read has no labels, and says why.

    Raises:
        DataError: A path does not exist, or a folder holds no image.
        CheckpointError: The source is not a usable model.
        ConfigError: An argument has an impossible value.
    """
    if top < 1 or batch_size < 1:
        raise ConfigError(f"top and batch_size must be at least 1, got {top} and {batch_size}")
    opened = source if isinstance(source, OpenedModel) else open_model(source, pretrained=pretrained, device=device)
    files = find_images([images] if isinstance(images, str | Path) else images)
    results: list[Prediction] = []
    with torch.inference_mode(), image_progress("predicting", len(files)) as advance:
        for start in range(0, len(files), batch_size):
            chunk = files[start : start + batch_size]
            results += _predict_batch(opened, chunk, top)
            advance(len(chunk))
    return results


def _predict_batch(opened: OpenedModel, files: Sequence[Path], top: int) -> list[Prediction]:
    images: dict[Path, Image.Image] = {}
    errors: dict[Path, str] = {}
    for file in files:
        try:
            images[file] = read_image(file)
        except ImageError as error:
            errors[file] = str(error)
    labels = dict(zip(images, likeliest_classes(opened, list(images.values()), top), strict=True))
    return [Prediction(file, labels.get(file, ()), errors.get(file)) for file in files]


def likeliest_classes(
    opened: OpenedModel, images: Sequence[Image.Image], top: int
) -> list[tuple[tuple[str, float], ...]]:
    """Return the likeliest classes of each image with their probabilities (0 to 1), best first.

    Args:
        opened: The model; it looks at all images at once.
        images: Upright RGB images of any sizes, maybe none.
        top: How many classes to name for each.
    """
    if not images:
        return []
    transform = eval_transform(opened.preprocess)
    device = next(opened.model.parameters()).device
    with torch.inference_mode():
        logits = opened.model(torch.stack([transform(image) for image in images]).to(device))
        best = logits.float().softmax(dim=1).cpu().topk(min(top, len(opened.classes)))
    return [
        tuple((opened.classes[index], share) for index, share in zip(indices, shares, strict=True))
        for indices, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
