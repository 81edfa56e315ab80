"""Predict the class of every pixel of images: label maps, drawn pictures and the share of each class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from fullfield.data import read_image
from fullfield.data.segmentation.label_maps import Colour
from fullfield.errors import ConfigError, ImageError
from fullfield.files import atomic_write, write_error, write_json
from fullfield.progress import image_progress
from fullfield.tasks.predict import find_images, picture_name
from fullfield.tasks.segmentation.draw import class_shares, draw_segmentation
from fullfield.tasks.segmentation.inference import WHOLE_IMAGE, InferenceOptions, predict_labels
from fullfield.tasks.segmentation.opened import OpenedSegmenter

__all__ = ["SegmentationPrediction", "label_image", "predict_segmentation", "save_segmentation"]


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


def predict_segmentation(
    opened: OpenedSegmenter,
    images: str | Path | Sequence[str | Path],
    options: InferenceOptions = WHOLE_IMAGE,
) -> Iterator[SegmentationPrediction]:
    """Predict the classes of the pixels of images, one image at a time.

    Args:
        opened: The model.
        images: Files and folders (searched through); one or several.
        options: How images are looked at: whole or through windows, at which scales.

    Returns:
        An iterator that gives a prediction an image, in order, and keeps none: label maps of many photographs would
        fill the memory. An image that can't be read has no labels, and says why.

    Raises:
        DataError: A path does not exist, or a folder holds no image.
    """
    files = find_images([images] if isinstance(images, str | Path) else images)
    return _predictions(opened, files, options)


def _predictions(
    opened: OpenedSegmenter, files: Sequence[Path], options: InferenceOptions
) -> Iterator[SegmentationPrediction]:
    device = next(opened.model.parameters()).device
    with image_progress("predicting", len(files)) as advance:
        for file in files:
            try:
                image = _to_tensor(read_image(file), opened.preprocess.channels)
            except ImageError as error:
                yield SegmentationPrediction(file, None, (), str(error))
            else:
                likeliest = predict_labels(opened.model, image.to(device), options).cpu().numpy()
                labels = likeliest.astype(np.uint8) if len(opened.classes) <= 256 else likeliest.astype(np.uint16)
                shares = class_shares(labels, len(opened.classes))
                order = [label for label in np.argsort(-shares, kind="stable").tolist() if shares[label] > 0]
                occurring = tuple((opened.classes[label], float(shares[label])) for label in order)
                yield SegmentationPrediction(file, labels, occurring)
            advance(1)


def _to_tensor(image: Image.Image, channels: int) -> Tensor:
    """Return (channels, H, W) float32, 0 to 1."""
    tensor: Tensor = functional.pil_to_tensor(image.convert("L" if channels == 1 else "RGB"))
    return tensor.float() / 255


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
