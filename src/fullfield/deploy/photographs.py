"""Real images for looking at an export: those that the user names, the run's own, or the samples that ship.

int8 is fitted to images like those that it will see, and answers are compared on them: the run's own data serve both,
as long as they are still where the run found them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fullfield.data.dense import DensePreprocess
from fullfield.data.image_data import Located, Sample
from fullfield.data.place import read_sample
from fullfield.data.preprocess import Preprocess
from fullfield.data.sample import SAMPLE_PREFIX, sample_path
from fullfield.deploy.description import Description
from fullfield.deploy.prepare import classifier_input, dense_input
from fullfield.errors import ConfigError, DataError, FullfieldError, ImageError
from fullfield.tasks.answers import find_images
from fullfield.tasks.open import OpenedDense
from fullfield.tasks.source import OpenedModel, is_registered_name

__all__ = ["Photographs", "for_calibration", "for_verification", "model_inputs"]

Paths = str | Path | Sequence[str | Path]

SAMPLES = {"classify": "blood_cells", "detect": "blood_cells_boxes", "segment": "nuclei"}
FOR_VERIFICATION = {"classify": 200, "detect": 16, "segment": 16}  # where the user names none
FOR_CALIBRATION = {"classify": 128, "detect": 32, "segment": 32}  # held in memory as they are fed


@dataclass(frozen=True)
class Photographs:
    """Images that are read when they are needed.

    Attributes:
        source: Where they come from, for the record.
        samples: The images, as files or inside archives.
    """

    source: str
    samples: tuple[Located, ...]

    def __len__(self) -> int:
        return len(self.samples)

    def spread(self, most: int) -> Photographs:
        """Return at most so many of them, evenly spread: lists are sorted by class."""
        count = len(self.samples)
        if count <= most:
            return self
        return Photographs(self.source, tuple(self.samples[index * count // most] for index in range(most)))

    def read(self) -> Iterator[Image.Image]:
        """Yield the images that can be read, RGB and upright.

        Raises:
            DataError: Not one can be read.
        """
        failed: ImageError | None = None
        any_read = False
        for sample in self.samples:
            try:
                image = read_sample(sample)
            except ImageError as error:
                failed = failed or error
                continue
            any_read = True
            yield image
        if not any_read:
            raise DataError(f"no image of {self.source} can be read: {failed}") from failed


def for_verification(opened: OpenedModel | OpenedDense, images: Paths | None) -> Photographs:
    """Return the images that a file's answers are compared on.

    Args:
        opened: The model.
        images: Files and folders, all of which are taken; None for held-out images of the run, if they are still there:
            its test part, and where that has too few its validation part too. Else the sample that ships for the task.

    Raises:
        DataError: A path does not exist, or a folder holds no image.
    """
    if images is not None:
        return _named(images)
    most = FOR_VERIFICATION[opened.task]
    own = _of_run(opened, ("test", "val"), most)
    if own is not None:
        return own
    name = SAMPLES[opened.task]
    files = tuple(Sample(path, 0) for path in find_images([sample_path(name)]) if path.parent.name != "masks")
    return Photographs(f"{SAMPLE_PREFIX}{name}", files).spread(most)


def for_calibration(opened: OpenedModel | OpenedDense, images: Paths | None) -> Photographs:
    """Return the images that the ranges of int8 are fitted to.

    Args:
        opened: The model.
        images: Files and folders; None for the training images of the run.

    Raises:
        DataError: A path does not exist, or a folder holds no image.
        ConfigError: None were named, and the model is no run whose images are still there.
    """
    most = FOR_CALIBRATION[opened.task]
    found = _named(images).spread(most) if images is not None else _of_run(opened, ("train",), most)
    if found is None:
        raise ConfigError(
            f"int8 has to be fitted to images, and those that {opened.source} was trained on are not to be found."
            " Name about a hundred like those that it will see with --calibrate FOLDER (calibration=...)"
        )
    return found


def model_inputs(photographs: Photographs, description: Description) -> list[NDArray[np.float32]]:
    """Return images as a file takes them one at a time, (1, C, H, W) float32, values from 0 to 1.

    Args:
        photographs: Those that can't be read are left out.
        description: Of the file.

    Raises:
        DataError: Not one can be read.
    """
    if description.task == "classify":
        square = Preprocess.from_dict(description.preprocess)
        return [classifier_input(image, square)[None] for image in photographs.read()]
    p, height, width = DensePreprocess.from_dict(description.preprocess), description.height, description.width
    return [dense_input(image, p, height=height, width=width).pixels[None] for image in photographs.read()]


def _named(images: Paths) -> Photographs:
    paths = [images] if isinstance(images, str | Path) else list(images)
    source = " ".join(str(path) for path in paths[:3]) + (" ..." if len(paths) > 3 else "")
    return Photographs(source, tuple(Sample(path, 0) for path in find_images(paths)))


def _of_run(opened: OpenedModel | OpenedDense, splits: Sequence[str], most: int) -> Photographs | None:
    """Return at most so many images of the splits, the first ones first; None if it is no run or they are gone."""
    if is_registered_name(opened.source):
        return None
    try:
        found = _read_data(opened)
    except (FullfieldError, OSError):
        return None
    taken: list[Located] = []
    names = []
    for split in splits:
        if found.splits.get(split) and len(taken) < most:
            taken += Photographs(split, tuple(found.splits[split])).spread(most - len(taken)).samples
            names.append(split)
    parts = f"{' and '.join(names)} {'part' if len(names) == 1 else 'parts'}"
    return Photographs(f"{parts} of {found.source}", tuple(taken)) if taken else None


class _Data(Protocol):
    """Annotated images of any task."""

    @property
    def source(self) -> str:
        """What the user named."""

    @property
    def splits(self) -> Mapping[str, Sequence[Located]]:
        """Images by split."""


def _read_data(opened: OpenedModel | OpenedDense) -> _Data:
    if isinstance(opened, OpenedModel):
        from fullfield.tasks.run_folder import read_run_data

        return read_run_data(opened.source)
    from fullfield.tasks.evaluate_any import read_annotated

    data: _Data = read_annotated(opened.source, None, opened.task)
    return data
