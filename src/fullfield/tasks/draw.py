"""Draw what a model says about an image: the picture with the most probable classes below it.

Only Pillow is used. Its bundled font (Aileron) knows little more than ASCII, so a name with other letters is
set in the first font of the system, or of an installed Matplotlib, that has all of them. Where none has,
accents are dropped and what is still unknown becomes "?". The layout scales with the width.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from PIL import Image, ImageDraw, ImageFont

from fullfield.errors import ConfigError, ImageError

__all__ = ["bundled_font", "draw_prediction", "percent", "shorten", "typeset"]

_LABELS = 5
_MIN_WIDTH = 96
# The picture's frame is between a quarter and one and a half times as high as wide; the rest is letterboxed.
_MIN_ASPECT, _MAX_ASPECT = 0.25, 1.5
_FRAME, _PANEL, _INK, _MUTED = "#eceef1", "#ffffff", "#1b1f24", "#5c6570"
_TRACK, _BAR, _FIRST_BAR = "#e4e7eb", "#9db9e6", "#1f5fbf"
# Looked up by Pillow in the system's font folders, the most legible in small sizes first, CJK last.
_SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "arial.ttf",
    "Arial.ttf",
    "segoeui.ttf",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "PingFang.ttc",
    "msyh.ttc",
)
_PRIVATE = "\ue000"  # no text font has a glyph here, so this is drawn as the font's "missing" box


def draw_prediction(image: Image.Image, labels: Sequence[tuple[str, float]], *, width: int = 480) -> Image.Image:
    """Draw an image with a panel of class names, bars and percentages below it.

    Args:
        image: The picture, of any size; modes other than RGB are converted by Pillow.
        labels: Class name and probability (0 to 1), the most probable first; the first five are drawn.
        width: Width of the result in pixels.

    Returns:
        A new RGB image `width` wide; its height depends on the picture's shape and the number of labels.

    Raises:
        ConfigError: `width` is below 96.
        ImageError: The picture has no pixels.
    """
    if width < _MIN_WIDTH:
        raise ConfigError(f"a drawn prediction of width {width} is illegible; use at least {_MIN_WIDTH}")
    if not image.width or not image.height:
        raise ImageError(f"a picture of {image.width} × {image.height} pixels cannot be drawn; it is empty")
    picture = _fit(image.convert("RGB"), width)
    size = max(9, round(width / 30))  # of the text; all distances of the panel follow from it
    row = round(2.5 * size)
    panel = size + row * min(len(labels), _LABELS) if labels else 0
    sheet = Image.new("RGB", (width, picture.height + panel), _PANEL)
    sheet.paste(picture, (0, 0))
    draw = ImageDraw.Draw(sheet)
    left, right = size, width - size
    for i, (name, probability) in enumerate(labels[:_LABELS]):
        top = picture.height + round(0.7 * size) + i * row
        figure = percent(probability).replace("\u2013", "-")
        plain = bundled_font(size)
        draw.text((right, top + size), figure, font=plain, fill=_INK if i == 0 else _MUTED, anchor="rs")
        text, font = typeset(name, size)
        text = shorten(text, font, right - left - plain.getlength(figure) - size)
        draw.text((left, top + size), text, font=font, fill=_INK, anchor="ls")
        bar_top, thickness = top + round(1.4 * size), max(2, round(0.3 * size))
        share = min(max(probability, 0.0), 1.0) if math.isfinite(probability) else 0.0
        box = (left, bar_top, right, bar_top + thickness)
        draw.rounded_rectangle(box, thickness / 2, fill=_TRACK)
        if share > 0:
            end = left + max(thickness, round(share * (right - left)))
            colour = _FIRST_BAR if i == 0 else _BAR
            draw.rounded_rectangle((left, bar_top, end, bar_top + thickness), thickness / 2, fill=colour)
    return sheet


def percent(share: float) -> str:
    """Format a fraction as a percentage that says 100 % or 0 % only when it is exactly that.

    Args:
        share: The fraction; one that is not finite gives an en dash.
    """
    if not math.isfinite(share):
        return "\u2013"
    text = f"{share * 100:.1f}"
    if text == "100.0" and share < 1:
        text = "> 99.9"
    elif text == "0.0" and share > 0:
        text = "< 0.1"
    return f"{text} %"


def _fit(image: Image.Image, width: int) -> Image.Image:
    """Scale an image to `width`, letterboxed where its shape is extreme; a small one keeps hard pixels."""
    aspect = min(max(image.height / image.width, _MIN_ASPECT), _MAX_ASPECT)
    height = round(width * aspect)
    scale = min(width / image.width, height / image.height)
    if scale < 1:
        resample = Image.Resampling.LANCZOS
    elif scale < 4:
        resample = Image.Resampling.BICUBIC
    else:
        resample = Image.Resampling.NEAREST  # smoothing would hide how little the model was given
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    picture = image.resize(size, resample)
    if picture.size == (width, height):
        return picture
    frame = Image.new("RGB", (width, height), _FRAME)
    frame.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
    return frame


def shorten(text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    """Cut a text that is wider than `room` pixels and end it with an ellipsis."""
    if font.getlength(text) <= room:
        return text
    low, high = 0, len(text)
    while low < high:  # the longest beginning that fits
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle].rstrip() + "…") <= room:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "…"


def typeset(name: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """Return a name as one line of printable text, and a font that has all its glyphs."""
    # Lone surrogates stand for bytes of file names that are not UTF-8.
    name = name.encode("utf-8", errors="replace").decode("utf-8")
    name = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    bundled = bundled_font(size)
    if not _missing(name, bundled):
        return name, bundled
    for font in _other_fonts(size):
        if not _missing(name, font):
            return name, font
    name = unicodedata.normalize("NFKD", name)
    name = "".join(c for c in name if not unicodedata.combining(c))
    unknown = _missing(name, bundled)
    return "".join("?" if c in unknown else c for c in name), bundled


def _missing(text: str, font: ImageFont.FreeTypeFont) -> set[str]:
    """Return the characters that a font draws as its box for missing glyphs."""
    box = bytes(font.getmask(_PRIVATE))
    return {c for c in set(text) if not c.isascii() and bytes(font.getmask(c)) == box}


@functools.lru_cache(maxsize=8)
def bundled_font(size: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font at a size, pixels; it knows little more than ASCII."""
    # Pillow gives its bitmap font only when asked for no size.
    return cast("ImageFont.FreeTypeFont", ImageFont.load_default(size))


@functools.lru_cache(maxsize=8)
def _other_fonts(size: int) -> tuple[ImageFont.FreeTypeFont, ...]:
    candidates = list(_SYSTEM_FONTS)
    # Found without importing it: Matplotlib brings DejaVu Sans, which has most alphabets.
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin is not None:
        candidates.append(str(Path(matplotlib.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"))
    fonts = []
    for candidate in candidates:
        try:
            fonts.append(ImageFont.truetype(candidate, size))
        except OSError:
            continue
    return tuple(fonts)
