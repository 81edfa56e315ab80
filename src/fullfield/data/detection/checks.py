"""What every annotation must pass, whichever format it came in, and the counting of what did not.

A reader lists images and annotations as they stand in its files. `make_samples` then checks all boxes of a part at
once, with numpy, and hands each image its objects. Nothing is dropped in silence: `Findings` counts each kind of
defect with its first example, and becomes the notes that the user sees.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fullfield.data.detection.annotations import Annotations, Findings, ListedImage, Listing, Part
from fullfield.data.detection.objects import DetectionSample, Objects
from fullfield.data.detection.outlines import outline_area
from fullfield.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["distinct_names", "make_samples", "require_most_images"]

ROUNDING = 0.1
"""A box may reach so many pixels beyond its image by the rounding of its file; it is clipped and not counted."""

LACKING = 0.1
"""At most this share of the objects may lack an outline for the others' outlines to be kept."""

CLIPPED = "Boxes clipped because they reached beyond their image"
OUTSIDE = "Objects skipped because their box lies outside of the image"
NO_SIZE = "Objects skipped because their box has no width or height"
NOT_FINITE = "Objects skipped because their box is not four finite numbers"
NO_OUTLINE = "Objects skipped because they have no usable outline, unlike the others"
BOXES_ONLY = "Outlines left out, because too many objects have none that can be used"
SAME_NAME = "Classes of the same name as another, told apart by their id"


def distinct_names(
    names: Sequence[str], category_ids: Sequence[int], findings: Findings, source: Path
) -> tuple[str, ...]:
    """Return the names of the classes, those that occur twice with their id behind them."""
    counts = Counter(names)
    for name, category_id in zip(names, category_ids, strict=True):
        if counts[name] > 1:
            findings.add(SAME_NAME, f"{source}, {name!r}, id {category_id}")
    return tuple(
        f"{name} ({category_id})" if counts[name] > 1 else name
        for name, category_id in zip(names, category_ids, strict=True)
    )


def require_most_images(source: Path, missing: Sequence[object], listed: int, remedy: str) -> None:
    """Refuse a list most of whose images cannot be used.

    Raises:
        DataError: More than half of them are missing.
    """
    if 2 * len(missing) > listed:
        raise DataError(f"{source}: {len(missing)} of {listed} images are missing, the first is {missing[0]}. {remedy}")


def make_samples(source: str, listing: Listing) -> dict[str, tuple[DetectionSample, ...]]:
    """Check every annotation and return the samples by split; what is amiss is added to `listing.findings`.

    Boxes are clipped to their image. Objects are skipped whose box is not finite, outside or without size. Either all
    objects that remain have an outline, or none has: if more than one in ten lack one, all outlines are left out,
    otherwise those objects are skipped.

    Args:
        source: What the user named, for messages.
        listing: What a reader found.

    Raises:
        DataError: More than half of the objects of a part cannot be used, or the training part has none.
    """
    findings = listing.findings
    parts = {}
    for split, part in listing.parts.items():
        parts[split] = annotations = _with_usable_boxes(part, findings)
        before = len(part.annotations)
        if 2 * len(annotations) < before:
            raise DataError(
                f"{source}: {before - len(annotations)} of {before} objects of {split!r} cannot be used. "
                f"{' '.join(findings.sentences())} Check that the boxes are those of this format."
            )
    if "train" in parts and not len(parts["train"]):
        raise DataError(
            f"{source}: none of the {len(listing.parts['train'].images)} training images has an object to learn from. "
            f"{' '.join(findings.sentences())}"
        )
    parts = _with_or_without_outlines(parts, findings)
    return {split: _samples(listing.parts[split].images, annotations) for split, annotations in parts.items()}


def _with_usable_boxes(part: Part, findings: Findings) -> Annotations:
    annotations = part.annotations
    sizes = np.array([(image.width, image.height) for image in part.images], dtype=np.float64).reshape(-1, 2)
    limits = np.tile(sizes[annotations.images], 2)  # (N, 4)
    boxes = annotations.boxes
    finite = np.isfinite(boxes).sum(axis=1) == 4
    boxes = np.where(finite[:, None], boxes, 0)
    # As float32, which is what remains: a box thinner than its spacing has no size either.
    clipped = np.clip(boxes, 0, limits).astype(np.float32)
    has_size = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    inside = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    usable = finite & has_size & inside
    reaches_beyond = usable & (abs(clipped - boxes) > ROUNDING).any(axis=1)
    for kind, found in (
        (NOT_FINITE, ~finite),
        (NO_SIZE, finite & ~has_size),
        (OUTSIDE, finite & has_size & ~inside),
        (CLIPPED, reaches_beyond),
    ):
        if found.any():
            findings.add(kind, annotations.where(int(found.argmax())), int(found.sum()))
    checked = replace(annotations, boxes=clipped.astype(np.float64))
    return checked if usable.all() else checked.taken(np.flatnonzero(usable))


def _with_or_without_outlines(parts: Mapping[str, Annotations], findings: Findings) -> dict[str, Annotations]:
    """Return the parts such that all of their objects have an outline, or none has."""
    lacking = {
        split: [position for position, outline in enumerate(part.outlines) if outline is None]
        for split, part in parts.items()
    }
    lack, total = sum(map(len, lacking.values())), sum(map(len, parts.values()))
    if lack == total:
        return dict(parts)
    enough = lack <= LACKING * total
    for split, part in parts.items():
        if lacking[split]:
            findings.add(NO_OUTLINE if enough else BOXES_ONLY, part.where(lacking[split][0]), len(lacking[split]))
    if not enough:
        return {split: replace(part, outlines=[None] * len(part)) for split, part in parts.items()}
    return {
        split: part.taken(np.delete(np.arange(len(part)), lacking[split])) if lacking[split] else part
        for split, part in parts.items()
    }


def _samples(images: Sequence[ListedImage], annotations: Annotations) -> tuple[DetectionSample, ...]:
    """Hand each image its objects, in the order of their files."""
    found = annotations.taken(np.argsort(annotations.images, kind="stable"))
    boxes = found.boxes.astype(np.float32)
    outlined = len(found) > 0 and found.outlines[0] is not None
    areas = _areas(found, boxes)
    ends = np.searchsorted(found.images, np.arange(len(images) + 1)).tolist()
    return tuple(
        DetectionSample(
            image.path,
            image.image_id,
            image.height,
            image.width,
            Objects(
                boxes[start:end],
                found.labels[start:end],
                found.crowd[start:end],
                areas[start:end],
                found.ids[start:end],
                tuple(found.outlines[start:end]) if outlined else None,
            ),
        )
        for image, start, end in zip(images, ends, ends[1:], strict=False)
    )


def _areas(annotations: Annotations, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the areas (N,) float32 that the file gives, else of the outlines, else of the boxes."""
    areas = annotations.areas.copy()
    for position in np.flatnonzero(np.isnan(areas)).tolist():
        outline = annotations.outlines[position]
        if outline is not None:
            areas[position] = outline_area(outline)
    return np.where(np.isnan(areas), np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), areas).astype(np.float32)
