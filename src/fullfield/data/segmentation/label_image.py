"""Read one label map: an image file whose pixels are numbers or colours of classes, and never a picture to look at.

Whatever would change a number is refused rather than guessed: lossy formats, transparency, floats, depths that Pillow
rescales. The numbers of a palette image are its indices; the colours of its palette are for the eye, unless the data
set's classes are told by colour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from fullfield.data.image import MAX_PIXELS, UPRIGHT
from fullfield.data.image_data import Sample
from fullfield.data.place import open_sample
from fullfield.data.segmentation.label_maps import SegmentationData
from fullfield.errors import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LOSSY_EXTENSIONS", "MASK_EXTENSIONS", "LabelCode", "colour_number", "read_label_map", "read_raw_label_map"]

MASK_EXTENSIONS: frozenset[str] = frozenset({".png", ".bmp", ".gif", ".tif", ".tiff"})
LOSSY_EXTENSIONS: frozenset[str] = frozenset({".jpg", ".jpeg", ".webp"})
LOSSY = "whose lossy compression changes the values of pixels at the edges of classes"
REFUSED = {"JPEG": LOSSY, "MPO": LOSSY, "WEBP": LOSSY, "PPM": "whose values are rescaled in reading"}
# The last three are opened to be called by their name; what is opened as JPEG may turn out to be MPO.
FORMATS = ("PNG", "BMP", "GIF", "TIFF", "JPEG", "WEBP", "PPM")
# Pillow stretches grey of 2 and 4 bits to 0..255; this undoes it.
STRETCHED = {"L;2": 85, "L;4": 17}
NUMBERED_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")
EIGHT_BIT_MODES = ("1", "L", "LA", "RGB", "RGBA")
UNKNOWN = -(2**31)  # no label: labels are positions or an ignore_index
TABLE_SIZE = 2**16


@dataclass(frozen=True)
class LabelCode:
    """What the raw values of label maps mean.

    Attributes:
        classes: Number of classes; labels are 0 to classes - 1.
        ignore_index: The label of pixels that do not count.
        values: Raw value -> label. None: raw values are labels, and the raw value `ignore_index` is ignored.
        by_colour: Raw values are colours, see `colour_number`.
    """

    classes: int
    ignore_index: int = 255
    values: Mapping[int, int] | None = None
    by_colour: bool = False

    @classmethod
    def of(cls, data: SegmentationData) -> LabelCode:
        """Return what the label maps of a data set mean."""
        values = data.values
        if data.by_colour and values is None:
            values = {colour_number(*colour): label for label, colour in enumerate(data.colours)}
        return cls(len(data.classes), data.ignore_index, values, data.by_colour)

    def known(self) -> dict[int, int]:
        """Return every raw value that has a meaning, with its label."""
        if self.values is not None:
            return dict(self.values)
        return {**{label: label for label in range(self.classes)}, self.ignore_index: self.ignore_index}

    def labels(self, raw: NDArray[np.int64], name: str) -> NDArray[np.int64]:
        """Turn raw values into labels.

        Args:
            raw: (H, W).
            name: What to call the label map in messages.

        Returns:
            (H, W), each a position among the classes or `ignore_index`.

        Raises:
            ImageError: A raw value has no meaning; it is named with its place.
        """
        known = sorted(self.known().items())
        keys = np.array([key for key, _ in known], dtype=np.int64)
        meanings = np.array([label for _, label in known], dtype=np.int64)
        labels: NDArray[np.int64]
        if raw.min() >= 0 and raw.max() < TABLE_SIZE:  # several times faster than a search
            table = np.full(TABLE_SIZE, UNKNOWN, dtype=np.int64)
            within = (keys >= 0) & (keys < TABLE_SIZE)
            table[keys[within]] = meanings[within]
            labels = table[raw]
        else:
            position = np.minimum(np.searchsorted(keys, raw), len(keys) - 1)
            labels = np.where(keys[position] == raw, meanings[position], UNKNOWN)
        unknown = labels == UNKNOWN
        if unknown.any():
            raise self._unknown_value(raw, unknown, name)
        return labels

    def _unknown_value(self, raw: NDArray[np.int64], unknown: NDArray[np.bool_], name: str) -> ImageError:
        y, x = np.unravel_index(int(unknown.argmax()), unknown.shape)
        count = int(np.count_nonzero(unknown))
        if self.by_colour:
            what = f"the colour {_colour(int(raw[y, x]))}"
            remedy = "Add it to the class file, as a class or under 'ignore', or mend the label map."
        else:
            what = f"the value {int(raw[y, x])}"
            remedy = f"{self._expected()} Mend the label map, or give 'values' or 'ignore' in a class file."
        return ImageError(f"{name}: {what} at x={x}, y={y} is of no class ({count:,} such pixels). {remedy}")

    def _expected(self) -> str:
        if self.values is None:
            return f"Expected 0 to {self.classes - 1}, or {self.ignore_index} for what is not labelled."
        keys = sorted(self.values)
        return f"Expected one of {', '.join(map(str, keys[:12]))}{', ...' if len(keys) > 12 else ''}."


def colour_number(red: int, green: int, blue: int) -> int:
    """Return red · 65536 + green · 256 + blue: the raw value of a coloured pixel."""
    return red << 16 | green << 8 | blue


def read_label_map(path: str | Path, code: LabelCode, *, size: tuple[int, int] | None = None) -> NDArray[np.int64]:
    """Read a label map as labels.

    Args:
        path: The file.
        code: What its pixels mean.
        size: (width, height) of the upright picture that it belongs to, pixels; None does not compare them.

    Returns:
        (H, W), upright, each a position among the classes or `code.ignore_index`.

    Raises:
        ImageError: As `read_raw_label_map`; or it is of another size than the picture; or a value is of no class.
    """
    name = str(path)
    raw = read_raw_label_map(path, by_colour=code.by_colour)
    if raw.ndim == 3:
        raise ImageError(
            f"{name}: is an RGB picture, but the label maps of this data set hold numbers. {_WITH_COLOURS}"
        )
    if size is not None and raw.shape[::-1] != size:
        height, width = raw.shape
        turned = " The picture may be turned by its EXIF orientation." if raw.shape == size else ""
        raise ImageError(
            f"{name}: has {width} x {height} pixels, but its picture has {size[0]} x {size[1]}.{turned} Make both of "
            "one size; a label map is resized by nearest neighbour."
        )
    return code.labels(raw, name)


_WITH_COLOURS = "Save it as 8-bit grey, or give the colours of the classes in a class file."


def read_raw_label_map(path: str | Path, *, by_colour: bool = False) -> NDArray[np.int64]:
    """Read the numbers of a label map, upright.

    Grey images of 1, 8 and 16 bits and integer TIFF give their values, palette images their indices. An RGB picture
    whose channels are equal is taken as grey. An alpha channel must be opaque everywhere.

    Args:
        path: The file.
        by_colour: Give `colour_number` of each pixel instead; a palette is looked up.

    Returns:
        (H, W). For an RGB picture with colours, without `by_colour`: (H, W, 3), for the caller to say what is missing.

    Raises:
        ImageError: The file is missing, damaged, too large, lossy (JPEG, WebP), partly transparent, of floats or not an
            image.
    """
    name = str(path)
    with open_sample(Sample(Path(path), label=0)) as stream:
        try:
            return _decode(stream, name, by_colour)
        except ImageError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ImageError(f"{name}: has more than the limit of {MAX_PIXELS:,} pixels (Pillow: {error}).") from error
        except UnidentifiedImageError as error:
            empty = "is empty (0 bytes)" if Path(path).stat().st_size == 0 else "is not a PNG, BMP, GIF or TIFF image"
            raise ImageError(
                f"{name}: {empty}, or its header is damaged. Save it again as PNG or remove it."
            ) from error
        except MemoryError:
            raise
        except Exception as error:  # the decoders raise almost anything on a damaged file
            raise ImageError(
                f"{name}: is damaged or cut off ({error}). Copy it again from its source or remove it."
            ) from error


def _decode(stream: IO[bytes], name: str, by_colour: bool) -> NDArray[np.int64]:
    with Image.open(stream, formats=FORMATS) as image:
        kind = str(image.format)
        if kind in REFUSED or "jpeg" in str(image.info.get("compression", "")):  # TIFF may hold JPEG
            reason = REFUSED.get(kind, LOSSY)
            raise ImageError(f"{name}: is a {kind} image, {reason}. Export the label map again as PNG.")
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(
                f"{name}: has {image.width} x {image.height} pixels, more than the limit of {MAX_PIXELS:,}. Cut it up."
            )
        stored = _stored_as(image)
        if ";" in stored and image.mode in EIGHT_BIT_MODES and stored not in STRETCHED:
            raise ImageError(
                f"{name}: stores its pixels as {stored!r} (Pillow's name), which are not read exactly. Save it as "
                "8-bit PNG."
            )
        image.load()
        values = _values(image, name, by_colour)
        if stored in STRETCHED and not by_colour:
            values = values // STRETCHED[stored]
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return _upright(values, orientation)


def _stored_as(image: ImageFile.ImageFile) -> str:
    """Return Pillow's name of the pixels' layout in the file, such as "L;4"; empty where it has none."""
    arguments: Any = image.tile[0][3] if image.tile else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _values(image: Image.Image, name: str, by_colour: bool) -> NDArray[np.int64]:
    if image.mode in ("LA", "RGBA"):
        image = _without_alpha(image, name)
    if by_colour and image.mode in ("1", "L", "P"):
        image = image.convert("RGB")
    if image.mode == "RGB":
        channels = np.asarray(image).astype(np.int64)
        if by_colour:
            return channels[..., 0] << 16 | channels[..., 1] << 8 | channels[..., 2]
        grey = (channels[..., 0] == channels[..., 1]).all() and (channels[..., 1] == channels[..., 2]).all()
        return channels[..., 0] if grey else channels
    if image.mode in NUMBERED_MODES and not by_colour:
        return np.asarray(image).astype(np.int64)
    expected = "RGB or a palette" if by_colour else "grey of 1, 8 or 16 bits, or a palette"
    raise ImageError(f"{name}: has Pillow's mode {image.mode!r}; a label map here is {expected}. Save it so, as PNG.")


def _without_alpha(image: Image.Image, name: str) -> Image.Image:
    lowest = image.getchannel("A").getextrema()[0]
    if lowest != 255:
        raise ImageError(
            f"{name}: has transparent pixels (alpha down to {lowest}); which class is under them is not said. Save it "
            "without an alpha channel."
        )
    return image.convert("RGB" if image.mode == "RGBA" else "L")


def _upright(values: NDArray[np.int64], orientation: int) -> NDArray[np.int64]:
    """Undo an EXIF orientation, as `read_image` does for the picture; through Pillow, so that both mean the same."""
    if orientation not in UPRIGHT:
        return values
    height, width = values.shape[:2]
    position = Image.fromarray(np.arange(height * width, dtype=np.int32).reshape(height, width))
    turned = np.asarray(position.transpose(UPRIGHT[orientation]))
    upright: NDArray[np.int64] = values.reshape(height * width, *values.shape[2:])[turned]
    return upright


def _colour(number: int) -> tuple[int, int, int]:
    return number >> 16, number >> 8 & 255, number & 255
