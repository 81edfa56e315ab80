"""Annotations as readers list them, before their boxes are checked, and the counting of what is amiss in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["AnnotationTable", "Annotations", "Findings", "ListedImage", "Listing", "Part"]


class Findings:
    """Counts what is amiss in a data set, by kind."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, kind: str, where: str, count: int = 1) -> None:
        """Count a defect.

        Args:
            kind: What it is and what was done, such as "Boxes clipped because they reached beyond their image".
            where: File and id of the first of these.
            count: How many there are.
        """
        self._counts[kind] += count
        self._first.setdefault(kind, where)

    def sentences(self) -> tuple[str, ...]:
        """Return one sentence a kind: what, how many, and the first example."""
        return tuple(f"{kind}: {count} (first: {self._first[kind]})." for kind, count in self._counts.items())


@dataclass(frozen=True, slots=True)
class ListedImage:
    """An image as its annotations describe it; height and width in pixels, upright."""

    path: Path
    image_id: int
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class Annotations:
    """The N annotations of one part, as they stand in its files.

    Attributes:
        boxes: (N, 4) float64, (left, top, right, bottom) in pixels; NaN where there are none.
        labels: (N,) int64, positions in the classes.
        crowd: (N,) bool.
        areas: (N,) float64, pixels; NaN where the file gives none.
        ids: (N,) int64, for messages.
        images: (N,) int64, positions in the part's images.
        outlines: N outlines as in `Objects`, None where there is none or it cannot be used.
        where: Says in which file and where in there an annotation stands, given its position.
    """

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    ids: NDArray[np.int64]
    images: NDArray[np.int64]
    outlines: Sequence[Any]
    where: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.labels)

    def taken(self, positions: NDArray[np.int64]) -> Annotations:
        """Return those at the given positions (M,), in that order."""
        return Annotations(
            self.boxes[positions],
            self.labels[positions],
            self.crowd[positions],
            self.areas[positions],
            self.ids[positions],
            self.images[positions],
            [self.outlines[position] for position in positions.tolist()],
            lambda position: self.where(int(positions[position])),
        )


@dataclass(eq=False)
class AnnotationTable:
    """Annotations while they are read one by one, from many small files.

    Attributes:
        unit: What an id counts in its file: "object" or "line".
    """

    unit: str
    _rows: list[tuple[Sequence[float], int, bool, int, int]] = field(default_factory=list)
    _outlines: list[Any] = field(default_factory=list)
    _files: list[Path] = field(default_factory=list)

    def append(
        self,
        file: Path,
        number: int,
        image: int,
        box: Sequence[float],
        label: int,
        *,
        crowd: bool = False,
        outline: Any,
    ) -> None:
        """Add the annotation at a place of a file; the other arguments are those of `Annotations`."""
        self._files.append(file)
        self._rows.append((box, label, crowd, number, image))
        self._outlines.append(outline)

    def finish(self) -> Annotations:
        """Return all that was added."""
        boxes, labels, crowd, numbers, images = zip(*self._rows, strict=True) if self._rows else ((),) * 5
        ids = np.array(numbers, dtype=np.int64)
        return Annotations(
            np.array(boxes, dtype=np.float64).reshape(-1, 4),
            np.array(labels, dtype=np.int64),
            np.array(crowd, dtype=np.bool_),
            np.full(len(ids), np.nan),
            ids,
            np.array(images, dtype=np.int64),
            self._outlines,
            lambda position: f"{self._files[position]}, {self.unit} {ids[position]}",
        )


@dataclass(frozen=True, eq=False)
class Part:
    """One split as its files list it."""

    images: Sequence[ListedImage]
    annotations: Annotations


@dataclass(frozen=True, eq=False)
class Listing:
    """What a reader found, before its boxes are checked; fields as in `DetectionData`."""

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    parts: Mapping[str, Part]
    findings: Findings
