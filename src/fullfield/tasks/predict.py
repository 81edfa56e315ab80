"""Predict the class of images with a trained model: a table, files, and drawn pictures."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fullfield.data import IMAGE_EXTENSIONS, eval_transform, read_image
from fullfield.errors import ConfigError, DataError, ImageError, nearest
from fullfield.files import atomic_write, write_error, write_json
from fullfield.progress import image_progress
from fullfield.tasks.draw import draw_prediction
from fullfield.tasks.source import OpenedModel, open_model

__all__ = ["Prediction", "find_images", "predict", "save_predictions"]


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image."""

    path: Path
    labels: tuple[tuple[str, float], ...]
    """The likeliest classes with their probabilities (0 to 1), best first; empty if the image can't be read."""
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        labels = [{"class": name, "probability": share} for name, share in self.labels]
        return {"path": str(self.path), "labels": labels, "error": self.error}


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


def _predict_batch(opened: OpenedModel, files: Sequence[Path], top: int) -> Iterator[Prediction]:
    transform = eval_transform(opened.preprocess)
    tensors: dict[Path, Tensor] = {}
    errors: dict[Path, str] = {}
    for file in files:
        try:
            tensors[file] = transform(read_image(file))
        except ImageError as error:
            errors[file] = str(error)
    shares: dict[Path, Tensor] = {}
    if tensors:
        device = next(opened.model.parameters()).device
        logits = opened.model(torch.stack(list(tensors.values())).to(device))
        shares = dict(zip(tensors, logits.float().softmax(dim=1).cpu(), strict=True))
    for file in files:
        if file in errors:
            yield Prediction(file, (), errors[file])
            continue
        best = shares[file].topk(min(top, len(opened.classes)))
        names = [opened.classes[index] for index in best.indices.tolist()]
        yield Prediction(file, tuple(zip(names, best.values.tolist(), strict=True)))


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """Return the image files that paths mean: files as they are, folders searched through, in order, each once.

    Raises:
        DataError: A path does not exist (the nearest is named), a folder holds no image, or there is none at all.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(
                p
                for p in path.rglob("*")
                if p.suffix.lower() in IMAGE_EXTENSIONS and not p.name.startswith(".") and p.is_file()
            )
            if not inside:
                raise DataError(f"the folder {path} holds no image ({', '.join(sorted(IMAGE_EXTENSIONS))})")
            found |= dict.fromkeys(inside)
        elif path.exists():
            found[path] = None
        else:
            siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise DataError(f"there is no image {path}{nearest(path.name, siblings)}")
    if not found:
        raise DataError("no image was given")
    return list(found)


def save_predictions(predictions: Sequence[Prediction], folder: str | Path, *, draw: bool = True) -> Path:
    """Write `predictions.csv`, `predictions.json` and one drawn picture an image into a folder, and return it.

    Args:
        predictions: As `predict` returns them.
        folder: Made if it does not exist; files of those names are replaced.
        draw: Whether to draw the pictures.

    Raises:
        RunError: The folder can't be written or the disk is full.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
    write_json(folder / "predictions.json", [prediction.to_dict() for prediction in predictions])
    with (
        atomic_write(folder / "predictions.csv") as partial,
        partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["path", "class", "probability", "error"])
        for p in predictions:
            name, share = p.labels[0] if p.labels else ("", None)
            writer.writerow([p.path, name, "" if share is None else f"{share:.4f}", p.error or ""])
    if draw:
        for p in predictions:
            if p.labels:
                with atomic_write(folder / picture_name(p.path)) as partial:
                    draw_prediction(read_image(p.path), p.labels).save(partial, format="PNG")
    return folder


def picture_name(path: Path) -> str:
    """Return the drawn picture's file name: the image's own, kept short, and unique for its whole path."""
    digest = hashlib.sha256(str(path.absolute()).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{path.stem[:60]}-{digest}.png"
