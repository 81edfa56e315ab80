"""What every reader of detection data returns: classes, and the images of each split with their objects.

Boxes are (left, top, right, bottom) in pixels of the image as it is seen (upright), with edges at whole numbers: a box
over the whole image is (0, 0, width, height). A label is a position in `DetectionData.classes`, from 0; what a head
does with a background class is its own affair.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fullfield.data.image_data import SPLITS, Place
from fullfield.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["DetectionData", "DetectionSample", "Objects"]


@dataclass(frozen=True, slots=True, eq=False)
class Objects:
    """The N annotated objects of one image; N may be 0.

    Attributes:
        boxes: (N, 4) float32, (left, top, right, bottom), pixels.
        labels: (N,) int64, positions in the classes.
        crowd: (N,) bool; a crowd region is neither to be found nor counted as wrong (COCO's iscrowd, VOC's difficult).
        areas: (N,) float32, pixels: of the outline where there is one, else of the box. COCO's sizes go by it.
        ids: (N,) int64, the annotations' own, for messages.
        masks: N outlines, or None where the data has boxes alone. An outline is a tuple of polygons, each (P, 2)
            float32 of x and y in pixels, or COCO's RLE as {"size": [height, width], "counts": bytes, text or list}.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float32]
    ids: NDArray[np.int64]
    masks: tuple[tuple[NDArray[np.float32], ...] | Mapping[str, Any], ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True, eq=False)
class DetectionSample:
    """One image with its objects.

    Attributes:
        path: The file.
        image_id: Unique within a data set; COCO's own id where it has one.
        height: Of the upright image, pixels.
        width: Likewise.
        objects: What is in it.
        place: Always None so far: the image is a file.
    """

    path: Path
    image_id: int
    height: int
    width: int
    objects: Objects
    place: Place | None = None


@dataclass(frozen=True, eq=False)
class DetectionData:
    """A detection data set.

    Attributes:
        source: What the user named.
        classes: The names; a label is a position in here.
        category_ids: The data's own number of each class, which may have gaps (COCO's run to 90 for 80 classes);
            predictions are written with these.
        splits: Samples by split. "train" and "val" are always there and hold images; "test" may be absent.
        notes: Sentences to tell the user: what was split, clipped, skipped or counted, with file and id.

    Raises:
        DataError: A split is missing, empty or unknown, or the numbers of classes differ.
    """

    source: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    splits: dict[str, tuple[DetectionSample, ...]]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = set(self.splits) - set(SPLITS)
        if unknown:
            raise DataError(f"{self.source}: unknown split {min(unknown)!r}; the splits are {', '.join(SPLITS)}.")
        for split in ("train", "val"):
            if not self.splits.get(split):
                raise DataError(f"{self.source}: the split {split!r} has no images; training needs some.")
        if len(self.category_ids) != len(self.classes) or len(set(self.category_ids)) != len(self.classes):
            raise DataError(f"{self.source}: {len(self.classes)} classes need as many different category ids.")

    @property
    def has_masks(self) -> bool:
        """Whether every object of the training part has an outline, as Mask R-CNN needs."""
        return all(s.objects.masks is not None for s in self.splits["train"] if len(s.objects))

    def counts(self, split: str) -> list[int]:
        """Return the number of objects of each class, crowds not counted.

        Raises:
            DataError: There is no such split.
        """
        if split not in self.splits:
            raise DataError(f"{self.source}: has no split {split!r}; it has {', '.join(map(repr, self.splits))}.")
        counts = [0] * len(self.classes)
        for sample in self.splits[split]:
            for label, crowd in zip(sample.objects.labels.tolist(), sample.objects.crowd.tolist(), strict=True):
                counts[label] += not crowd
        return counts

    def blocks(self, split: str) -> None:
        """Return None: every image is a file of its own, which can be read in any order."""
        del split
