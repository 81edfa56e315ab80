"""What every engine asks of a file when it opens it, and of images before it runs them; needs no PyTorch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fullfield.deploy.description import KEY, OUTPUTS, Description
from fullfield.errors import CheckpointError, ConfigError

__all__ = [
    "check_images",
    "check_names",
    "check_threads",
    "damaged",
    "first_line",
    "input_name",
    "read_bytes",
    "read_description",
    "release_of",
]


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads that is no number of threads.

    Raises:
        ConfigError: It is neither None nor a whole number of at least 1.
    """
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ConfigError(f"threads is {threads!r}; it must be a whole number of at least 1, or None to leave it open")


def read_bytes(file: Path) -> bytes:
    """Return all of a file, so that what happens to it later changes nothing.

    Raises:
        CheckpointError: It can't be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{file} can't be read ({error.strerror or error}); check the path and its rights"
        ) from error


def damaged(file: object, error: BaseException) -> CheckpointError:
    """Return the error for a file that its library can't open."""
    return CheckpointError(
        f"{file} is damaged, cut off, or no model of that kind ({first_line(error)}); copy or export it again"
    )


def read_description(text: str | None, file: object) -> Description:
    """Return what a file says of itself.

    Args:
        text: The JSON in its metadata; None or "" if there is none.
        file: For messages.

    Raises:
        CheckpointError: There is no description, or it can't be read.
    """
    if not text:
        raise CheckpointError(
            f"{file} does not say how it wants its images or what its classes are (no metadata {KEY!r}): Fullfield did"
            " not export it; make one with `fullfield export`"
        )
    return Description.from_json(text, file)


def input_name(description: Description) -> str:
    """Return the name of the one input."""
    return "pixels" if description.preprocessing_inside else "images"


def check_names(inputs: Iterable[str], outputs: Iterable[str], description: Description, file: object) -> None:
    """Refuse a graph whose input and outputs are not those of its task.

    Raises:
        CheckpointError: A name is missing, or there is another input.
    """
    found_in, found_out = list(inputs), list(outputs)
    task, wanted = description.task, input_name(description)
    if found_in != [wanted] or not set(OUTPUTS[task]) <= set(found_out):
        raise CheckpointError(
            f"{file} takes {', '.join(found_in)} and gives {', '.join(found_out)}; a file for {task} takes {wanted} and"
            f" gives {', '.join(OUTPUTS[task])}. Export it again with `fullfield export`"
        )


def check_images(images: NDArray[Any], description: Description) -> None:
    """Refuse images that the file does not take.

    Args:
        images: As the description says: (B, C, H, W) float32, or one image (1, H, W, C) uint8 where preprocessing is
            inside.
        description: Of the file.

    Raises:
        ConfigError: They are of another type or shape, or hold NaN or infinity.
    """
    channels = int(description.preprocess.get("channels", 3))
    d = description
    dtype: np.dtype[Any] = np.dtype(np.float32)
    wanted: tuple[int | None, ...] = (d.batch, channels, d.height, d.width)
    layout = "(images, channels, height, width)"
    if d.preprocessing_inside:
        dtype, wanted, layout = np.dtype(np.uint8), (1, d.height, d.width, channels), "(1, height, width, channels)"
    if images.dtype != dtype:
        raise ConfigError(f"images are {images.dtype}; {d.name} takes {dtype}")
    shape = images.shape
    if len(shape) != 4 or 0 in shape or any(want not in (None, is_) for want, is_ in zip(wanted, shape, strict=True)):
        sizes = " x ".join("any" if want is None else str(want) for want in wanted)
        raise ConfigError(f"images have shape {shape}; {d.name} takes {layout} of {sizes}")
    if dtype == np.float32 and not np.isfinite(images).all():
        raise ConfigError("images hold NaN or infinity; give values from 0 to 1")


def release_of(version: str) -> str:
    """Return the first two parts of a library's version: "1.31" of "1.31.1"."""
    return ".".join(version.split("+")[0].split("-")[0].split(".")[:2])


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text that says something, short enough for a message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
