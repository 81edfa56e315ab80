"""What a classifier says of images, and the files and pictures of it; needs no PyTorch."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fullfield.data import IMAGE_EXTENSIONS, read_image
from fullfield.errors import DataError, nearest
from fullfield.files import atomic_write, write_error, write_json
from fullfield.tasks.draw import draw_prediction

__all__ = ["Prediction", "find_images", "picture_name", "save_predictions"]


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
