"""Draw the objects that were found in an image: boxes, half-transparent masks, names with scores.

Only Pillow and NumPy are used. Every class has a colour of its own, which depends on its number alone, so that it is
the same in every picture of a model. Lines have a dark or light casing and names stand on a filled ground, so that
both are seen on any picture. The more objects, the thinner the lines and the smaller the names. A name is left out
where it would cover another one, and with more than 30 objects it is no wider than its own box; then a key below the
picture tells the colours.
"""

from __future__ import annotations

import colorsys
import functools
import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from fullfield.data.detection.outlines import rle_to_mask
from fullfield.errors import ConfigError, ImageError
from fullfield.tasks.detection.coco_form import Detection
from fullfield.tasks.draw import shorten, typeset

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["class_colour", "draw_detections"]

_MIN_WIDTH = 96
_SMALLEST, _SMALLEST_CROWDED, _LARGEST = 640, 1280, 1600  # the longer side where no width is given, pixels
_MAX_ASPECT = 4.0  # a picture of a given width is at most so many times as high
_CROWD = 30  # with more objects than this a name is no wider than its own box
_MASK_OPACITY = 0.42
_PANEL, _INK, _DARK, _LIGHT = "#ffffff", "#1b1f24", (16, 18, 20), (255, 255, 255)
# The first classes' colours, told apart easily and seen on photographs as on micrographs.
_FIRST_COLOURS = (
    (230, 57, 70),
    (47, 128, 237),
    (255, 190, 11),
    (46, 184, 92),
    (155, 81, 224),
    (251, 133, 0),
    (0, 187, 212),
    (236, 72, 153),
)

Colour = tuple[int, int, int]


class _Rectangle(NamedTuple):
    """Edges in pixels of the drawn picture; right and bottom are outside."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: _Rectangle) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def class_colour(label: int) -> Colour:
    """Return the colour of a class, (red, green, blue) from 0 to 255; after some hundred classes they recur.

    Args:
        label: The position of the class, from 0.
    """
    colours = _palette()
    return colours[label % len(colours)]


@functools.cache
def _palette() -> tuple[Colour, ...]:
    """Return colours of which each is the one farthest from all before it, by Euclidean distance in CIELAB."""
    wheel = [
        tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue / 36, saturation, value))
        for value in (1.0, 0.8, 0.6)
        for saturation in (1.0, 0.75, 0.5)
        for hue in range(36)
    ]
    colours = np.array([*_FIRST_COLOURS, *wheel])
    places = _cielab(colours)
    distances = np.linalg.norm(places[:, None] - places, axis=2)
    order = list(range(len(_FIRST_COLOURS)))
    nearest = distances[order].min(axis=0)
    while nearest.max() > 0:
        order.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distances[order[-1]])
    return tuple((int(red), int(green), int(blue)) for red, green, blue in colours[order])


def _cielab(colours: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return sRGB colours (N, 3), 0 to 255, as CIELAB (N, 3) for the white of D65."""
    linear = np.array([[_linear(channel) for channel in colour] for colour in colours.tolist()])
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=1)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def _linear(channel: int) -> float:
    """Return the light of an sRGB channel, 0 to 1."""
    return channel / 255 / 12.92 if channel <= 10 else float(((channel / 255 + 0.055) / 1.055) ** 2.4)


def draw_detections(image: Image.Image, predictions: Sequence[Detection], *, width: int | None = None) -> Image.Image:
    """Draw objects onto an image.

    Args:
        image: The picture, upright, of any size; modes other than RGB are converted by Pillow.
        predictions: The objects, in pixels of `image`. A score that is NaN is left out, as for annotated objects.
        width: Width of the result in pixels; a very high picture is made narrower, so that its height stays within
            four widths. None draws at the image's own size, with the longer side between 640 (1280 with more than 30
            objects) and 1600.

    Returns:
        A new RGB image; below the picture is a key of the classes if not every object is named.

    Raises:
        ConfigError: `width` is below 96, or a mask is of another size than the image.
        ImageError: The picture has no pixels.
        MissingExtraError: There are masks, and faster-coco-eval, which decodes them, is not installed.
    """
    if width is not None and width < _MIN_WIDTH:
        raise ConfigError(f"drawn detections of width {width} are illegible; use at least {_MIN_WIDTH}")
    if not image.width or not image.height:
        raise ImageError(f"a picture of {image.width} × {image.height} pixels cannot be drawn; it is empty")
    # the largest first, so that small objects lie on top
    shown = sorted((one for one in predictions if _drawable(one)), key=_area, reverse=True)
    crowded = len(shown) > _CROWD
    scale = _scale(image, width, _SMALLEST_CROWDED if crowded else _SMALLEST)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    resample = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    thickness = _thickness(size, len(shown))
    picture = _with_masks(image.convert("RGB").resize(size, resample), shown, image.size, edge=thickness)
    draw = ImageDraw.Draw(picture)
    for one in shown:
        if one.mask is None or not crowded:  # in a crowd the edge of a mask tells enough
            _draw_box(draw, _scaled(one, image, size), class_colour(one.label), thickness)
    text_size = _text_size(size, len(shown))
    placed: list[_Rectangle] = []
    for one in sorted(shown, key=lambda one: -one.score if math.isfinite(one.score) else -1.0):
        box = _scaled(one, image, size)
        room = min(box.right - box.left + 1, size[0]) if crowded else 0.6 * size[0]
        wordings = _short_wordings(one, text_size) if crowded else _wordings(one, text_size, room)
        _draw_name(draw, wordings, box, class_colour(one.label), size, room, placed)
    return picture if len(placed) == len(shown) and not crowded else _with_key(picture, shown)


def _drawable(one: Detection) -> bool:
    return all(math.isfinite(edge) for edge in one.box) and one.box[2] >= one.box[0] and one.box[3] >= one.box[1]


def _area(one: Detection) -> float:
    return (one.box[2] - one.box[0]) * (one.box[3] - one.box[1])


def _scale(image: Image.Image, width: int | None, smallest: int) -> float:
    if width is not None:
        return min(width / image.width, _MAX_ASPECT * width / image.height)
    longer = max(image.size)
    return min(max(longer, smallest), _LARGEST) / longer


def _thickness(size: tuple[int, int], objects: int) -> int:
    """Return the width of lines in pixels: 1/220 of the shorter side for a few objects, half of it for a hundred."""
    return max(1, round(min(size) / 220 * _share(objects)))


def _text_size(size: tuple[int, int], objects: int) -> int:
    """Return the size of names in pixels, at least 10, which can still be read."""
    return max(10, round(min(max(size) / 48, min(size) / 16) * _share(objects)))


def _share(objects: int) -> float:
    """Return by how much lines and names are smaller among so many objects, 0 to 1."""
    return min(1.0, math.cbrt(12 / max(objects, 1)))


def _scaled(one: Detection, image: Image.Image, size: tuple[int, int]) -> _Rectangle:
    """Return a box in pixels of the drawn picture, clipped to it."""
    across, down = size[0] / image.width, size[1] / image.height
    left, right = (min(max(edge * across, 0.0), size[0] - 1.0) for edge in (one.box[0], one.box[2]))
    top, bottom = (min(max(edge * down, 0.0), size[1] - 1.0) for edge in (one.box[1], one.box[3]))
    return _Rectangle(left, top, right, bottom)


def _luminance(colour: Colour) -> float:
    """Return the relative luminance of WCAG 2.1, 0 (black) to 1 (white)."""
    red, green, blue = (_linear(channel) for channel in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _opposite(colour: Colour) -> Colour:
    """Return the dark or the light of more contrast with a colour; both are equal at a luminance of 0.18."""
    return _DARK if _luminance(colour) > 0.18 else _LIGHT


def _with_masks(
    picture: Image.Image, shown: Sequence[Detection], original: tuple[int, int], *, edge: int
) -> Image.Image:
    """Tint the masks of objects and draw their edges, `edge` pixels wide."""
    if all(one.mask is None for one in shown):
        return picture
    canvas = np.array(picture)
    for one in shown:
        if one.mask is None:
            continue
        mask = rle_to_mask(dict(one.mask)).astype(bool)
        if mask.shape != (original[1], original[0]):
            raise ConfigError(
                f"the mask of {one.name!r} has {mask.shape[0]} × {mask.shape[1]} pixels and the image {original[1]} ×"
                f" {original[0]}; give the image that the objects were found in"
            )
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not rows.size:
            continue
        # only the part that the mask covers, with a margin for its edge: a hundred masks would take long otherwise
        across, down = picture.width / original[0], picture.height / original[1]
        margin = edge + 1
        left = max(0, math.floor(columns[0] * across) - margin)
        right = min(picture.width, math.ceil((columns[-1] + 1) * across) + margin)
        top = max(0, math.floor(rows[0] * down) - margin)
        bottom = min(picture.height, math.ceil((rows[-1] + 1) * down) + margin)
        part = Image.fromarray(mask.astype(np.uint8) * 255).resize(
            (right - left, bottom - top),
            Image.Resampling.BILINEAR,
            box=(left / across, top / down, min(right / across, original[0]), min(bottom / down, original[1])),
        )
        part = part.point(lambda value: 255 if value > 127 else 0)
        inside = np.asarray(part) > 0
        rim = inside & ~(np.asarray(part.filter(ImageFilter.MinFilter(2 * edge + 1))) > 0)
        colour = np.array(class_colour(one.label), dtype=np.float32)
        region = canvas[top:bottom, left:right]
        region[inside] = (region[inside] * (1 - _MASK_OPACITY) + colour * _MASK_OPACITY).astype(np.uint8)
        region[rim] = colour.astype(np.uint8)
    return Image.fromarray(canvas)


def _draw_box(draw: ImageDraw.ImageDraw, box: _Rectangle, colour: Colour, thickness: int) -> None:
    left, top, right, bottom = (round(edge) for edge in box)
    if thickness > 1:  # a casing of one pixel, seen where the picture has the box's own colour
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=_opposite(colour))
    draw.rectangle((left, top, right, bottom), outline=colour, width=thickness)


def _draw_name(
    draw: ImageDraw.ImageDraw,
    wordings: Sequence[tuple[str, ImageFont.FreeTypeFont]],
    box: _Rectangle,
    colour: Colour,
    size: tuple[int, int],
    room: float,
    placed: list[_Rectangle],
) -> None:
    """Write the first of some wordings that takes at most `room` pixels and finds a place where it covers no other."""
    for text, font in wordings:
        pad = max(1, round(font.size / 5))
        across, down = math.ceil(font.getlength(text)) + 2 * pad, math.ceil(font.size) + 2 * pad
        if not text or across > room or down > size[1]:
            continue
        for x, y in _corners(box, across, down):
            left, top = min(max(x, 0), size[0] - across), min(max(y, 0), size[1] - down)
            spot = _Rectangle(left, top, left + across, top + down)
            if not any(spot.meets(other) for other in placed):
                draw.rectangle((left, top, left + across - 1, top + down - 1), fill=colour)
                draw.text((left + pad, top + down / 2), text, font=font, fill=_opposite(colour), anchor="lm")
                placed.append(spot)
                return


def _wordings(one: Detection, text_size: int, room: float) -> list[tuple[str, ImageFont.FreeTypeFont]]:
    """Return what may be written at an object: name and score, the name cut off where it is very long."""
    name, font = typeset(one.name, text_size)
    score = f"{one.score:.2f}" if math.isfinite(one.score) else ""
    name = shorten(name, font, max(room - font.getlength(f" {score}") - text_size, 0))
    return [(f"{name} {score}".strip(), font)]


def _short_wordings(one: Detection, text_size: int) -> list[tuple[str, ImageFont.FreeTypeFont]]:
    """Return what may be written at an object in a crowd: name and score, or the score, as the key has the name."""
    name, font = typeset(one.name, text_size)
    score = f"{one.score:.2f}" if math.isfinite(one.score) else ""
    return [(f"{name} {score}".strip(), font), (score, font)]


def _corners(box: _Rectangle, across: int, down: int) -> list[tuple[int, int]]:
    """Return places for a name (left, top) in the order of preference: above, inside and below the box's edges."""
    left, right = round(box.left), round(box.right) + 1 - across
    heights = (round(box.top) - down, round(box.top), round(box.bottom) + 1, round(box.bottom) + 1 - down)
    return [(x, y) for y in heights for x in (left, right)]


def _with_key(picture: Image.Image, shown: Sequence[Detection]) -> Image.Image:
    """Add a strip below a picture that tells the colour, name and number of each class that is in it."""
    counts = Counter((one.label, one.name) for one in shown)
    text_size = max(9, min(18, round(picture.width / 48)))
    gap, row = text_size, round(1.8 * text_size)
    entries: list[tuple[int, int, Colour, str, ImageFont.FreeTypeFont]] = []
    x, y = gap, 0
    for (label, name), count in sorted(counts.items()):
        text, font = typeset(f"{name}  {count}", text_size)
        text = shorten(text, font, picture.width - 3.5 * gap)
        across = math.ceil(1.5 * gap + font.getlength(text))
        if x > gap and x + across > picture.width - gap:
            x, y = gap, y + row
        entries.append((x, y, class_colour(label), text, font))
        x += across + gap
    sheet = Image.new("RGB", (picture.width, picture.height + y + row + gap), _PANEL)
    sheet.paste(picture, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for left, top, colour, text, font in entries:
        middle = picture.height + gap // 2 + top + row / 2
        draw.rectangle((left, middle - text_size / 2, left + text_size, middle + text_size / 2), fill=colour)
        draw.text((left + 1.5 * gap, middle), text, font=font, fill=_INK, anchor="lm")
    return sheet
