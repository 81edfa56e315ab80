"""What readers of annotations ask of image files without decoding them: is it there, and how large is it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from PIL import ExifTags, Image

from fullfield.data.image import FORMATS, IMAGE_EXTENSIONS
from fullfield.errors import DataError, ImageError

__all__ = ["FileNames", "images_below", "upright_size"]

SIDEWAYS = (5, 6, 7, 8)
"""The EXIF orientations of a picture that is stored lying on its side."""


class FileNames:
    """Whether files exist, by listing each folder once: a hundred thousand questions to a disk take long."""

    def __init__(self) -> None:
        self._listed: dict[Path, frozenset[str]] = {}

    def of(self, folder: Path) -> frozenset[str]:
        """Return the names in a folder; none if it is not there or may not be listed."""
        if folder not in self._listed:
            try:
                self._listed[folder] = frozenset(os.listdir(folder))  # noqa: PTH208 - names, not a hundred thousand Paths
            except OSError:
                self._listed[folder] = frozenset()
        return self._listed[folder]

    def has(self, path: Path) -> bool:
        """Say whether a file is there."""
        return path.name in self.of(path.parent) or _is_file(path)  # a file system may not know upper from lower case


def images_below(folder: Path) -> list[Path]:
    """Return all images at any depth below a folder, sorted, hidden ones left out.

    Raises:
        DataError: The folder cannot be listed.
    """
    return sorted(_walk(folder), key=Path.as_posix)


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror}). Check its permissions.") from error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        below = Path(parent)
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS:  # noqa: PTH122
                yield below / name


def upright_size(path: Path) -> tuple[int, int]:
    """Return the height and width of an image as `read_image` would give it, from its header alone.

    Raises:
        ImageError: The file is missing or its header cannot be read.
    """
    if not _is_file(path):  # a pipe would block for ever
        raise ImageError(f"{path}: is not a file. Check the path; it may have been moved.")
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            # PngImageFile.getexif would decode the picture, to find the rare EXIF block behind it.
            orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # the decoders raise almost anything on a damaged file
        raise ImageError(f"{path}: its header cannot be read ({error}). Copy it again or remove it.") from error
    return (width, height) if orientation in SIDEWAYS else (height, width)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long or with a null byte, a folder that may not be entered
        return False
