"""What every reader of image lists returns: classes, and the samples of each split.

The readers (`folder.py`, `csv_list.py`, `shards.py`, `parquet.py`, `arrow.py`) and the dispatch between them
(`image_list.py`) all build on this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Protocol

from fullfield.errors import DataError

__all__ = ["SPLITS", "ImageData", "Located", "Place", "Sample", "canonical_split", "quote_some"]

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def canonical_split(name: str) -> str | None:
    """Return "train", "val" or "test" for any common spelling of it, or None."""
    return SPLIT_NAMES.get(name.strip().lower())


def quote_some(names: Iterable[object], most: int = 5) -> str:
    """Quote the first few names for a message and say how many more there are."""
    names = [str(name) for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more


class Place(Protocol):
    """Where the bytes of one image lie inside an archive; small, and pickled to the workers of a loader."""

    @property
    def block(self) -> Hashable:
        """What is read together with this image: equal for all images of one shard or row group."""

    def read(self) -> bytes:
        """Return the bytes of the image file.

        Raises:
            OSError: They cannot be read.
        """


class Located(Protocol):
    """A sample of any task: an image somewhere."""

    @property
    def path(self) -> Path:
        """The file, or for an image inside an archive what to show."""

    @property
    def place(self) -> Place | None:
        """Where in an archive the image lies; None for a file."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and the position of its class in `ImageData.classes`.

    Attributes:
        path: The file; for an image inside an archive, the archive and the name in there, to show and not to open.
        label: Position in `ImageData.classes`.
        place: Where in an archive the image lies; None for a file. `read_sample` reads either.
    """

    path: Path
    label: int
    place: Place | None = None


@dataclass(frozen=True)
class ImageData:
    """A classification data set: what its classes are and which images belong to which split.

    Attributes:
        source: What the user named: a folder, a CSV file, an archive or "sample:NAME".
        classes: The names; a label is a position in here.
        splits: Samples by split. "train" and "val" are always there and hold images; "test" may be absent.
        notes: Sentences to tell the user, such as which split was made or what was ignored.

    Raises:
        DataError: A split is missing, empty or unknown.
    """

    source: str
    classes: tuple[str, ...]
    splits: dict[str, tuple[Sample, ...]]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = set(self.splits) - set(SPLITS)
        if unknown:
            raise DataError(f"{self.source}: unknown split {min(unknown)!r}; the splits are {', '.join(SPLITS)}.")
        for split in ("train", "val"):
            if not self.splits.get(split):
                raise DataError(f"{self.source}: the split {split!r} has no images; training needs some.")

    def counts(self, split: str) -> list[int]:
        """Return the number of images of each class, in the order of `classes`.

        Raises:
            DataError: There is no such split.
        """
        found = Counter(sample.label for sample in self._samples(split))
        return [found[label] for label in range(len(self.classes))]

    def majority(self, split: str) -> float:
        """Return the share of the most frequent class: the accuracy of always guessing it.

        Raises:
            DataError: There is no such split.
        """
        counts = self.counts(split)
        return max(counts) / sum(counts)

    def blocks(self, split: str) -> tuple[range, ...] | None:
        """Return the ranges of positions whose images lie together (in one shard or row group), in order.

        `epoch_order` keeps an epoch's reading local with them. None if any image is a file of its own, which can be
        read in any order.

        Raises:
            DataError: There is no such split.
        """
        places = [sample.place for sample in self._samples(split)]
        ranges, start = [], 0
        for block, same in groupby(places, key=lambda place: None if place is None else place.block):
            if block is None:
                return None
            ranges.append(range(start, start := start + sum(1 for _ in same)))
        return tuple(ranges)

    def _samples(self, split: str) -> tuple[Sample, ...]:
        if split not in self.splits:
            raise DataError(f"{self.source}: has no split {split!r}; it has {', '.join(map(repr, self.splits))}.")
        return self.splits[split]
