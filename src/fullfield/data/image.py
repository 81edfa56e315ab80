"""Read one image file as an upright RGB picture, or say why not.

Photographs come with every depth, colour mode and defect. This is the one place that knows them, so that
everything behind it sees 8-bit RGB. Pillow decodes. Its global settings are left alone: what a caller or
another library has set there would change for the whole process, and it is not safe between threads.
"""

from __future__ import annotations

import io
import stat
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from fullfield.errors import ImageError

__all__ = ["IMAGE_EXTENSIONS", "MAX_PIXELS", "decode_image", "read_image"]

IMAGE_EXTENSIONS: frozenset[str] = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)
# Pillow refuses more than twice its MAX_IMAGE_PIXELS; it warns from the half of this on.
MAX_PIXELS = 178_956_970
# Only what the extensions promise: of Pillow's other formats, some start a foreign program (EPS).
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
FORMAT_NAMES = "JPEG, PNG, BMP, GIF, WebP, TIFF or PPM"

# What undoes each EXIF orientation. ImageOps.exif_transpose would also write the EXIF block anew, which
# fails where the block is damaged, though the picture itself is sound.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS, min_side: int | None = None) -> Image.Image:
    """Read an image file as RGB, upright, 8 bits a channel.

    Palette, grey and 1-bit images become RGB; transparency is laid on white; CMYK is converted; 16-bit grey
    is divided by 257, float grey within [0, 1] is multiplied by 255; an animation gives its first frame;
    the EXIF orientation is applied. The result carries no metadata.

    Args:
        path: The file.
        max_pixels: Refuse an image of more pixels, from its header, before any memory is taken. Pillow
            itself refuses more than `MAX_PIXELS`, so a larger number does not allow more.
        min_side: If given, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as its shorter side
            stays at least so long. Several times faster for large photographs.

    Raises:
        ImageError: The file is missing, a folder, empty, damaged, too large, not readable for this user,
            or not an image.
    """
    name = str(path)
    path = Path(path)
    try:
        kind = path.stat()
        if stat.S_ISDIR(kind.st_mode):
            raise ImageError(f"{name}: is a folder, not an image. Name a file inside it.")
        # A pipe or a device could block for ever.
        if not stat.S_ISREG(kind.st_mode):
            raise ImageError(f"{name}: is not a regular file. Name an image file.")
        if kind.st_size == 0:
            raise _empty(name)
        with path.open("rb") as stream:
            return _decode(stream, name, max_pixels, min_side)
    except FileNotFoundError as error:
        raise ImageError(f"{name}: does not exist. Check the path; it may have been moved.") from error
    except PermissionError as error:
        raise ImageError(
            f"{name}: this user may not read it. Change its permissions (chmod u+r) or run as its owner."
        ) from error
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # a broken disk, a name too long or with a null byte, ...
        raise ImageError(f"{name}: cannot be opened ({error}). Check the path and the disk.") from error


def decode_image(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS, min_side: int | None = None) -> Image.Image:
    """Decode an image held in memory; as `read_image` in every other respect.

    Args:
        data: The bytes of the image file.
        name: What to call it in messages.
        max_pixels: As in `read_image`.
        min_side: As in `read_image`.

    Raises:
        ImageError: The data are empty, damaged, too large or not an image.
    """
    if not data:
        raise _empty(name)
    return _decode(io.BytesIO(data), name, max_pixels, min_side)


def _empty(name: str) -> ImageError:
    return ImageError(f"{name}: is empty (0 bytes). Copy it again from its source or remove it.")


def _decode(stream: IO[bytes], name: str, max_pixels: int, min_side: int | None) -> Image.Image:
    too_large = f"more than the limit of {max_pixels:,} pixels. Make it smaller, or remove it if it is not yours"
    try:
        with Image.open(stream, formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise ImageError(f"{name}: has {image.width} x {image.height} pixels, {too_large}.")
            if min_side is not None:
                # Pillow takes the smallest of its scales that leaves both sides at least so long.
                image.draft(None, (max(min_side, 1), max(min_side, 1)))
            image.load()
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            rgb = _to_rgb(image, name)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name}: has {too_large} (Pillow: {error}).") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name}: is not a {FORMAT_NAMES} image, or its header is damaged. Save it again in one of these "
            "formats or remove it."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # the decoders raise almost anything on a damaged file
        raise ImageError(
            f"{name}: is damaged or cut off ({error}). Copy it again from its source or remove it."
        ) from error
    if orientation in UPRIGHT:
        rgb = rgb.transpose(UPRIGHT[orientation])
    # Otherwise the EXIF block would travel on, and someone may turn the picture a second time.
    rgb.info = {}
    return rgb


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert a loaded image of any mode to RGB, always as a new image."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _from_16_bit(np.asarray(image), name)
    elif image.mode == "F":
        image = _from_float(np.asarray(image), name)
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _from_16_bit(values: np.ndarray, name: str) -> Image.Image:
    """Scale 0..65535 to 0..255, which Pillow's own conversion would clip instead."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"{name}: has grey values from {low} to {high}; expected 0 to 65535. Save it with 8 or 16 bits."
        )
    return Image.fromarray(np.rint(values / np.float32(257)).astype(np.uint8))


def _from_float(values: np.ndarray, name: str) -> Image.Image:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # true for NaN as well
        raise ImageError(
            f"{name}: has float values from {low:g} to {high:g}; expected 0 to 1. Scale them to that range, "
            "or save the image with 8 or 16 bits."
        )
    return Image.fromarray(np.rint(values * np.float32(255)).astype(np.uint8))
