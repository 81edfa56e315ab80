"""Pictures whose objects are coloured rectangles on black, so that the pixels themselves say where an object is."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fullfield.data.detection.geometry import AnnotatedImage

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
HALF = 1.6 / 255
"""Where an edge goes through the middle of a pixel, rounding decides whether the pixel belongs to the object."""


def picture(
    height: int, width: int, boxes: list[tuple[int, int, int, int]], *, masks: bool = True
) -> tuple[Image.Image, dict[str, Tensor]]:
    """Return a picture with up to three rectangles in red, green and blue, labelled 0, 1, 2; the second is a crowd."""
    pixels = np.zeros((height, width, 3), np.uint8)
    found = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for i, (left, top, right, bottom) in enumerate(boxes):
        pixels[top:bottom, left:right] = COLOURS[i]
        found[:, top:bottom, left:right] = 0  # what is drawn later hides what was before
        found[i, top:bottom, left:right] = 1
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.arange(len(boxes)),
        "crowd": torch.arange(len(boxes)) == 1,
    }
    return Image.fromarray(pixels), {**target, "masks": found} if masks else target


def annotated(height: int, width: int, boxes: list[tuple[int, int, int, int]], *, masks: bool = True) -> AnnotatedImage:
    """The same as an `AnnotatedImage`."""
    image, target = picture(height, width, boxes, masks=masks)
    return AnnotatedImage(image, target["boxes"], target["labels"], target["crowd"], target.get("masks"))


def as_tensor(image: Image.Image) -> Tensor:
    """(3, H, W), 0 to 1."""
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1) / np.float32(255))


def assert_objects_are_where_their_colour_is(
    image: Tensor, target: dict[str, Tensor], *, box_pixels: float = 1.0
) -> None:
    """Compare boxes and masks with the pixels of each object's colour; crowd with the label.

    Args:
        image: (3, H, W), 0 to 1, in which each label occurs once.
        target: Of the image.
        box_pixels: By how much an edge of a box may differ.
    """
    assert len(set(target["labels"].tolist())) == len(target["labels"]) == len(target["boxes"])
    assert target["crowd"].tolist() == [label == 1 for label in target["labels"].tolist()]
    for i, label in enumerate(target["labels"].tolist()):
        rows, columns = torch.nonzero(image[label] >= 0.5, as_tuple=True)
        bounds = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert (target["boxes"][i] - bounds).abs().max() <= box_pixels
        if "masks" in target:
            assert target["masks"][i].dtype == torch.uint8
            differs = target["masks"][i].bool() != (image[label] >= 0.5)
            assert ((image[label][differs] - 0.5).abs() <= HALF).all()
