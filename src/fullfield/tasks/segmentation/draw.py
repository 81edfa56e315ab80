"""Draw what a segmenter says: the picture tinted by the classes' colours, with a legend of those that occur."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fullfield.data.segmentation.label_maps import Colour
from fullfield.errors import ConfigError, DataError
from fullfield.tasks.draw import bundled_font, percent, shorten, typeset

__all__ = ["class_shares", "draw_segmentation", "paint_labels"]

_MIN_WIDTH = 160
_FRAME, _PANEL, _INK, _MUTED, _RIM = "#eceef1", "#ffffff", "#1b1f24", "#5c6570", "#c3c9d0"
_ENTRIES = 30


def class_shares(labels: NDArray[Any], classes: int) -> NDArray[np.float64]:
    """Return the share of the pixels that each class has, (classes,); labels beyond the classes have none.

    The shares add up to less than 1 where pixels are not labelled.
    """
    counts = np.bincount(labels.reshape(-1)[labels.reshape(-1) < classes], minlength=classes)
    return counts / max(labels.size, 1)


def paint_labels(labels: NDArray[Any], colours: Sequence[Colour]) -> NDArray[np.uint8]:
    """Return the colour of each pixel's class, (H, W, 3); black where a label is beyond the classes."""
    table = np.zeros((len(colours) + 1, 3), np.uint8)
    table[:-1] = colours
    painted: NDArray[np.uint8] = table[np.minimum(labels, len(colours))]
    return painted


def draw_segmentation(
    image: Image.Image,
    labels: NDArray[Any],
    classes: Sequence[str],
    colours: Sequence[Colour],
    *,
    width: int = 720,
    opacity: float = 0.55,
) -> Image.Image:
    """Draw an image with its classes laid over it, their outlines, and a legend below.

    Args:
        image: The picture.
        labels: (H, W) integers at least 0, of the picture's size; a label beyond the classes is left untinted.
        classes: Their names.
        colours: Red, green and blue of each, 0 to 255.
        width: Of the result, pixels.
        opacity: Of the colours, 0 to 1.

    Returns:
        A new RGB image; the legend names each class that occurs with the share of its pixels, the largest first.

    Raises:
        ConfigError: `width` or `opacity` is impossible, or there are not as many colours as classes.
        DataError: The labels have another size than the picture, or none.
    """
    if width < _MIN_WIDTH:
        raise ConfigError(f"a drawn segmentation of width {width} is illegible; use at least {_MIN_WIDTH}")
    if not 0 <= opacity <= 1:
        raise ConfigError(f"opacity is {opacity}; it must be from 0 (the picture alone) to 1 (the colours alone)")
    if len(classes) != len(colours):
        raise ConfigError(f"{len(classes)} classes need as many colours, not {len(colours)}")
    if labels.shape != (image.height, image.width) or not labels.size:
        raise DataError(
            f"labels of {' x '.join(map(str, reversed(labels.shape)))} pixels can't be laid over a picture of"
            f" {image.width} x {image.height}"
        )
    picture = _tint(image.convert("RGB"), labels, colours, width, opacity)
    shares = class_shares(labels, len(classes))
    order = [int(label) for label in np.argsort(-shares, kind="stable") if shares[label] > 0]
    entries = [(classes[label], tuple(colours[label]), percent(float(shares[label]))) for label in order]
    legend = _legend(entries, width)
    sheet = Image.new("RGB", (width, picture.height + legend.height), _PANEL)
    sheet.paste(picture, (0, 0))
    sheet.paste(legend, (0, picture.height))
    return sheet


def _tint(
    image: Image.Image, labels: NDArray[Any], colours: Sequence[Colour], width: int, opacity: float
) -> Image.Image:
    """Scale a picture to `width` and lay the colours over it, more opaque along the outlines of the classes.

    The picture's frame is at most twice as high as wide; a taller picture is centred in it.
    """
    scale = min(width / image.width, 2 * width / image.height)
    across, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    # by index, not by Pillow, whose nearest has no mode for int64
    rows = (np.arange(height) * labels.shape[0]) // height
    columns = (np.arange(across) * labels.shape[1]) // across
    scaled = labels[rows[:, None], columns]
    photo = np.asarray(image.resize((across, height), Image.Resampling.LANCZOS), np.float32)
    edge = np.zeros(scaled.shape, bool)
    edge[1:] |= scaled[1:] != scaled[:-1]
    edge[:, 1:] |= scaled[:, 1:] != scaled[:, :-1]
    alpha = np.where(edge, max(opacity, 0.9) if opacity else 0.0, opacity) * (scaled < len(colours))
    mixed = photo + alpha[..., None] * (paint_labels(scaled, colours).astype(np.float32) - photo)
    picture = Image.fromarray(mixed.round().astype(np.uint8))
    if across == width:
        return picture
    frame = Image.new("RGB", (width, height), _FRAME)
    frame.paste(picture, ((width - across) // 2, 0))
    return frame


def _legend(entries: Sequence[tuple[str, tuple[int, ...], str]], width: int) -> Image.Image:
    """Draw a swatch, the name and the share of each class, in as many columns as fit."""
    size = max(11, min(16, round(width / 45)))
    row, margin, swatch = round(1.9 * size), size, round(1.1 * size)
    left_out = len(entries) - _ENTRIES
    entries = entries[:_ENTRIES]
    columns = max(1, (width - margin) // (14 * size))
    rows = -(-len(entries) // columns) + (left_out > 0)
    legend = Image.new("RGB", (width, 2 * round(margin / 2) + row * rows), _PANEL)
    draw = ImageDraw.Draw(legend)
    room = (width - margin) // columns
    plain = bundled_font(size)
    for index, (name, colour, share) in enumerate(entries):
        x, y = margin + room * (index % columns), round(margin / 2) + row * (index // columns)
        box = (x, y + (row - swatch) // 2, x + swatch, y + (row + swatch) // 2)
        draw.rectangle(box, fill=colour, outline=_RIM)
        share = share.replace("\u2013", "-")
        right = x + room - margin
        draw.text((right, y + row / 2), share, font=plain, fill=_MUTED, anchor="rm")
        text, font = typeset(name, size)
        start = x + swatch + size // 2
        text = shorten(text, font, right - start - plain.getlength(share) - size / 2)
        draw.text((start, y + row / 2), text, font=font, fill=_INK, anchor="lm")
    if left_out > 0:
        y = round(margin / 2) + row * (rows - 1)
        draw.text((margin, y + row / 2), f"and {left_out} more", font=plain, fill=_MUTED, anchor="lm")
    return legend
