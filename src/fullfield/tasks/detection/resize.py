"""From images of their own sizes to one padded batch that a net can see.

Resizing is bilinear and antialiased, like every other resizing in Fullfield and unlike torchvision's detectors, which
alias when they make a large photograph smaller. Images are padded at the right and bottom with zeros, the mean colour
after normalising, to a common size that the coarsest map of a backbone divides.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from fullfield.data.dense import DensePreprocess
from fullfield.errors import DataError

__all__ = ["DIVISOR", "batch_images", "padded_size"]

DIVISOR = 32
"""Both sides of a padded batch are multiples of this, pixels."""


def padded_size(height: int, width: int) -> tuple[int, int]:
    """Return both sides rounded up to a multiple of `DIVISOR`."""
    return -(-height // DIVISOR) * DIVISOR, -(-width // DIVISOR) * DIVISOR


def batch_images(images: Sequence[Tensor], preprocess: DensePreprocess, *, resize: bool) -> ImageList:
    """Normalise images and pad them to a common size.

    Args:
        images: (C, H, W) floating point each, values from 0 to 1, of any sizes; at least one.
        preprocess: Mean and standard deviation, and the sides to resize to.
        resize: Whether to resize by `preprocess.resized` first.

    Returns:
        tensors (B, C, H', W') and image_sizes, the (height, width) of each image in it without padding.

    Raises:
        DataError: An image has another number of dimensions or channels, no pixels, or integer values.
    """
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std))
    ready = []
    for index, image in enumerate(images):
        if image.ndim != 3 or len(image) != preprocess.channels or image.numel() == 0:
            raise DataError(
                f"image {index} of the batch has shape {tuple(image.shape)}; the detector takes"
                f" ({preprocess.channels}, height, width)"
            )
        if not image.is_floating_point():
            raise DataError(f"image {index} of the batch is {image.dtype}; divide by 255 to have values from 0 to 1")
        size = preprocess.resized(*image.shape[1:]) if resize else tuple(image.shape[1:])
        if size != tuple(image.shape[1:]):
            image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
        ready.append((image - mean.to(image)) / std.to(image))
    sizes = [(image.shape[1], image.shape[2]) for image in ready]
    height, width = padded_size(max(size[0] for size in sizes), max(size[1] for size in sizes))
    batch = ready[0].new_zeros(len(ready), preprocess.channels, height, width)
    for row, image in zip(batch, ready, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return ImageList(batch, sizes)
