"""What every reader of segmentation data returns: classes with colours, and the images of each split with label maps.

A label map is an image file of the same size as the picture whose pixels say which class is where. What its values
mean is in `SegmentationData`: raw values are looked up in `values`, or colours in `colours` where `by_colour` is set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fullfield.data.image_data import SPLITS, Place
from fullfield.errors import DataError

__all__ = ["Colour", "SegmentationData", "SegmentationSample"]

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class SegmentationSample:
    """One image with the file of its label map."""

    path: Path
    mask: Path
    place: Place | None = None
    """Always None so far: the image is a file."""


@dataclass(frozen=True)
class SegmentationData:
    """A segmentation data set.

    Attributes:
        source: What the user named.
        classes: The names; a label is a position in here.
        colours: Red, green and blue, 0 to 255, of each class, for pictures.
        splits: Samples by split. "train" and "val" are always there and hold images; "test" may be absent.
        values: Raw value of a label map -> label; `ignore_index` for values that mean "not labelled". None: raw values
            are labels already. With `by_colour` a raw value is red * 65536 + green * 256 + blue, and ignored colours
            stand here too.
        by_colour: Label maps are RGB pictures in the colours of `values`, or of `colours` where that is None.
        ignore_index: The label of pixels that are neither learned nor counted; never a position in `classes`.
        notes: Sentences to tell the user.

    Raises:
        DataError: A split is missing, empty or unknown, or the numbers of classes and colours differ.
    """

    source: str
    classes: tuple[str, ...]
    colours: tuple[Colour, ...]
    splits: dict[str, tuple[SegmentationSample, ...]]
    values: Mapping[int, int] | None = None
    by_colour: bool = False
    ignore_index: int = 255
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        unknown = set(self.splits) - set(SPLITS)
        if unknown:
            raise DataError(f"{self.source}: unknown split {min(unknown)!r}; the splits are {', '.join(SPLITS)}.")
        for split in ("train", "val"):
            if not self.splits.get(split):
                raise DataError(f"{self.source}: the split {split!r} has no images; training needs some.")
        if len(self.colours) != len(self.classes):
            raise DataError(
                f"{self.source}: {len(self.classes)} classes need as many colours, not {len(self.colours)}."
            )
        if 0 <= self.ignore_index < len(self.classes):
            raise DataError(
                f"{self.source}: ignore_index {self.ignore_index} is the class {self.classes[self.ignore_index]!r};"
                " use a number that no class has, such as 255."
            )

    def blocks(self, split: str) -> None:
        """Return None: every image is a file of its own, which can be read in any order."""
        del split
