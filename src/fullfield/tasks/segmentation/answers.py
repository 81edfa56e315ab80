"""What a segmenter says of the pixels of images: label maps and drawn pictures; needs no PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fullfield.data import read_image
from fullfield.data.segmentation.label_maps import Colour
from fullfield.errors import ConfigError
from fullfield.files import atomic_write, write_error, write_json
from fullfield.tasks.answers import picture_name
from fullfield.tasks.segmentation.draw import class_shares, draw_segmentation

__all__ = ["SegmentationPrediction", "label_image", "label_map", "save_segmentation", "shares_of"]


@dataclass(frozen=True, eq=False)
class SegmentationPrediction:
    """What the model says of one image."""

    path: Path
    labels: NDArray[np.uint8] | NDArray[np.uint16] | None
    """(H, W) positions in the model's classes, at the upright image's own size; None if it can't be read."""
    shares: tuple[tuple[str, float], ...]
    """The classes that occur with the share of the pixels that they have, the largest first."""
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything but the label map, as plain JSON values."""
        size = None if self.labels is None else {"width": self.labels.shape[1], "height": self.labels.shape[0]}
        return {"path": str(self.path), "size": size, "shares": dict(self.shares), "error": self.error}


def label_map(likeliest: NDArray[Any], classes: Sequence[str]) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Return labels (H, W) in the smallest type that holds all classes: uint8 up to 256 of them."""
    return likeliest.astype(np.uint8) if len(classes) <= 256 else likeliest.astype(np.uint16)


def shares_of(labels: NDArray[Any], classes: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Return the classes that occur in a label map with the share of the pixels that they have, the largest first."""
    shares = class_shares(labels, len(classes))
    order = [label for label in np.argsort(-shares, kind="stable").tolist() if shares[label] > 0]
    return tuple((classes[label], float(shares[label])) for label in order)


def save_segmentation(
    predictions: Iterable[SegmentationPrediction],
    folder: str | Path,
    *,
    classes: Sequence[str],
    colours: Sequence[Colour],
    draw: bool = True,
) -> Path:
    """Write label maps into `masks`, drawn pictures into `drawn`, and `predictions.json`; return the folder.

    Args:
        predictions: As `predict_segmentation` gives them; each is written before the next is asked for.
        folder: Made if it does not exist; files of those names are replaced.
        classes: Names of the labels.
        colours: Of each class: the palette of the label maps, and what pictures are tinted by.
        draw: Whether to draw the pictures.

    Raises:
        RunError: The folder can't be written or the disk is full.
        ConfigError: There are not as many colours as classes.
    """
    if len(classes) != len(colours):
        raise ConfigError(f"{len(classes)} classes need as many colours, not {len(colours)}")
    folder = Path(folder)
    try:
        for inner in ("masks", "drawn") if draw else ("masks",):
            (folder / inner).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
    rows = []
    for prediction in predictions:
        row = prediction.to_dict()
        if prediction.labels is not None:
            name = picture_name(prediction.path)
            row["mask"] = f"masks/{name}"
            with atomic_write(folder / "masks" / name) as partial:
                label_image(prediction.labels, colours).save(partial, format="PNG")
            if draw:
                row["drawn"] = f"drawn/{name}"
                picture = draw_segmentation(read_image(prediction.path), prediction.labels, classes, colours)
                with atomic_write(folder / "drawn" / name) as partial:
                    picture.save(partial, format="PNG")
        rows.append(row)
    write_json(folder / "predictions.json", {"classes": list(classes), "images": rows})
    return folder


def label_image(labels: NDArray[Any], colours: Sequence[Colour]) -> Image.Image:
    """Return a label map as an image whose pixel values are the labels.

    Up to 256 classes it has a palette of their colours, so that viewers show it in colour; beyond that it is 16-bit
    grey.
    """
    if len(colours) > 256:
        return Image.fromarray(labels.astype(np.uint16))
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette([value for colour in colours for value in colour])
    return image
