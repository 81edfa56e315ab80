"""Predict the class of every pixel of images with a trained segmenter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from fullfield.data import read_image
from fullfield.errors import ImageError
from fullfield.progress import image_progress
from fullfield.tasks.answers import find_images
from fullfield.tasks.segmentation.answers import SegmentationPrediction, label_map, shares_of
from fullfield.tasks.segmentation.inference import WHOLE_IMAGE, InferenceOptions, predict_labels
from fullfield.tasks.segmentation.opened import OpenedSegmenter

__all__ = ["labels_of", "predict_segmentation"]


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
    with image_progress("predicting", len(files)) as advance:
        for file in files:
            try:
                image = read_image(file)
            except ImageError as error:
                yield SegmentationPrediction(file, None, (), str(error))
            else:
                labels = labels_of(opened, image, options)
                yield SegmentationPrediction(file, labels, shares_of(labels, opened.classes))
            advance(1)


def labels_of(
    opened: OpenedSegmenter, image: Image.Image, options: InferenceOptions = WHOLE_IMAGE
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Return the likeliest class of each pixel of an upright RGB image, (H, W) positions in the model's classes."""
    device = next(opened.model.parameters()).device
    likeliest = predict_labels(opened.model, _to_tensor(image, opened.preprocess.channels).to(device), options)
    return label_map(likeliest.cpu().numpy(), opened.classes)


def _to_tensor(image: Image.Image, channels: int) -> Tensor:
    """Return (channels, H, W) float32, 0 to 1."""
    tensor: Tensor = functional.pil_to_tensor(image.convert("L" if channels == 1 else "RGB"))
    return tensor.float() / 255
