"""From a picture to the values that an exported file takes, by Pillow and numpy; needs no PyTorch.

A file must be fed as its net was trained and measured, so the pixels here are those of `data.eval_transform` to the
last bit (the graph normalises by itself), and those of a detector's or segmenter's own resizing up to the rounding of
float32: PyTorch computes where each pixel looks in float32, Pillow in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fullfield.data.dense import DensePreprocess
from fullfield.data.preprocess import INTERPOLATIONS, Preprocess, ResizedCentre

__all__ = ["DIVISOR", "DenseInput", "classifier_input", "dense_input", "raw_input"]

DIVISOR = 32
"""Both sides of a dense model's input are multiples of this, pixels, unless the file fixes them."""
_SCALE = np.float32(1 / 255)  # multiplied, as torchvision does: a division rounds otherwise


@dataclass(frozen=True, eq=False)
class DenseInput:
    """One image as a dense model takes it.

    Attributes:
        pixels: (C, H, W) float32, values from 0 to 1, padded on the right and below by the mean colour.
        seen: Height and width of the image in it, without padding, pixels.
        original: Height and width of the picture, pixels.
    """

    pixels: NDArray[np.float32]
    seen: tuple[int, int]
    original: tuple[int, int]


def classifier_input(image: Image.Image, p: Preprocess) -> NDArray[np.float32]:
    """Return the square that a classifier sees, (C, S, S) float32 from 0 to 1 with S = `image_size`, not normalised.

    Args:
        image: RGB, of any size.
        p: Of the model.
    """
    crop = ResizedCentre(p.image_size, round(p.image_size / p.crop_share), INTERPOLATIONS[p.interpolation])
    square = crop(image)
    pixels = np.asarray(square.convert("L") if p.channels == 1 else square, np.float32)
    return _channels_first(pixels) * _SCALE


def raw_input(image: Image.Image, channels: int) -> NDArray[np.uint8]:
    """Return the whole picture as a graph with the preprocessing inside takes it: (H, W, C) uint8.

    Args:
        image: RGB, of any size.
        channels: 3, or 1 for grey.
    """
    pixels = np.asarray(image.convert("L") if channels == 1 else image, np.uint8)
    return pixels.reshape(image.height, image.width, channels)


def dense_input(
    image: Image.Image, p: DensePreprocess, *, height: int | None = None, width: int | None = None
) -> DenseInput:
    """Resize a picture by `p.resized`, bilinear and antialiased, and pad it.

    Args:
        image: RGB, of any size.
        p: Of the model.
        height: That the file takes, pixels; the picture is made smaller if it does not fit. None pads to a multiple of
            `DIVISOR`.
        width: Likewise.
    """
    rows, columns = _fitted(p.resized(image.height, image.width), height, width)
    padded = (height or -(-rows // DIVISOR) * DIVISOR, width or -(-columns // DIVISOR) * DIVISOR)
    pixels = np.empty((p.channels, *padded), np.float32)
    pixels[:] = np.array(p.mean, np.float32)[:, None, None]
    bands = [image.convert("L")] if p.channels == 1 else image.split()
    for plane, band in zip(pixels, bands, strict=True):
        if band.size == (columns, rows):
            values = np.asarray(band, np.float32)
        else:  # in floating point: 8-bit resizing would round
            values = np.asarray(band.convert("F").resize((columns, rows), Image.Resampling.BILINEAR))
        np.multiply(values, _SCALE, out=plane[:rows, :columns])
    return DenseInput(pixels, (rows, columns), (image.height, image.width))


def _fitted(size: tuple[int, int], height: int | None, width: int | None) -> tuple[int, int]:
    """Return a height and width, made smaller in proportion where a side is longer than the file takes."""
    rows, columns = size
    scale = min(1.0, (height or rows) / rows, (width or columns) / columns)
    if scale == 1.0:
        return size
    return max(1, min(round(rows * scale), height or rows)), max(1, min(round(columns * scale), width or columns))


def _channels_first(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
