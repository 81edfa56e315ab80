"""Read the bytes of a sample, whether it is a file or lies inside an archive.

`read_sample` is the one door for whoever has a `Sample`. Descriptors of archives are opened when first needed, in
the process that needs them, and a bounded number is kept. They are read by `pread`, which has no position to share,
so that threads and forked workers do not disturb each other.
"""

from __future__ import annotations

import functools
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL import Image

from fullfield.data.image import decode_image, read_image
from fullfield.data.image_data import Located
from fullfield.errors import DataError, ImageError

__all__ = ["Archive", "TarPlace", "open_sample", "read_sample"]

KEPT_OPEN = 64  # archives; a process may usually have 1024 files open


@dataclass(frozen=True, slots=True)
class Archive:
    """A file that holds many images, as it was when its images were listed.

    Attributes:
        path: The file.
        size: Bytes.
        modified_ns: Time of its last change, nanoseconds.
    """

    path: Path
    size: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> Archive:
        """Look at a file.

        Raises:
            DataError: It is missing or may not be read.
        """
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(
                f"{path}: cannot be opened ({error.strerror}). Check the path and its permissions."
            ) from error
        return cls(path, status.st_size, status.st_mtime_ns)

    def check(self, descriptor: int | None = None) -> None:
        """Raise OSError if the file is not any more as it was; offsets into it would be wrong."""
        status = self.path.stat() if descriptor is None else os.fstat(descriptor)
        if (status.st_size, status.st_mtime_ns) != (self.size, self.modified_ns):
            raise OSError(f"{self.path} was changed since its images were listed; start again")


@dataclass(frozen=True, slots=True)
class TarPlace:
    """A member of an uncompressed tar file.

    Attributes:
        archive: The tar file.
        offset: Where the member's bytes begin, past its header.
        size: How many they are.
    """

    archive: Archive
    offset: int
    size: int

    @property
    def block(self) -> Archive:
        """The shard."""
        return self.archive

    def read(self) -> bytes:
        """Return the bytes of the member.

        Raises:
            OSError: The tar file is gone, was changed or is cut off.
        """
        opened = _descriptor(self.archive)  # holding it keeps it open, whatever other threads do to the cache
        data = os.pread(opened.number, self.size, self.offset)
        while len(data) < self.size:
            more = os.pread(opened.number, self.size - len(data), self.offset + len(data))
            if not more:
                raise OSError(f"{self.archive.path} ends at byte {self.offset + len(data)}")
            data += more
        return data


def read_sample(sample: Located, *, min_side: int | None = None) -> Image.Image:
    """Read the image of a sample as RGB, upright, 8 bits a channel; see `read_image`.

    Args:
        sample: A file, or an image inside an archive.
        min_side: As in `read_image`.

    Raises:
        ImageError: It cannot be read or is no image.
    """
    if sample.place is None:
        return read_image(sample.path, min_side=min_side)
    return decode_image(_read(sample), str(sample.path), min_side=min_side)


def open_sample(sample: Located) -> IO[bytes]:
    """Open the bytes of a sample's image file, as they are.

    Raises:
        ImageError: They cannot be read.
    """
    if sample.place is not None:
        return io.BytesIO(_read(sample))
    try:
        if not sample.path.is_file():  # a pipe would block for ever
            raise OSError("no such file" if not sample.path.exists() else "not a regular file")
        return sample.path.open("rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{sample.path}: cannot be opened ({reason}). Check the path and its permissions.") from error


def _read(sample: Located) -> bytes:
    assert sample.place is not None  # noqa: S101 - for the type checker
    try:
        return sample.place.read()
    except OSError as error:
        raise ImageError(
            f"{sample.path}: cannot be read from its archive ({error}). Mend the archive, or copy it again from its "
            "source."
        ) from error


class _Descriptor:
    """An open file that is closed when nobody reads it any more, though the cache has dropped it before."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@functools.lru_cache(maxsize=KEPT_OPEN)
def _descriptor(archive: Archive) -> _Descriptor:
    descriptor = _Descriptor(archive.path)
    archive.check(descriptor.number)
    return descriptor
