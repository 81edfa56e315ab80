"""Check outlines as they stand in annotation files, and turn them into those of `Objects`.

What cannot be used is counted and left out: one polygon of several, or the whole outline, which is then None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fullfield.data.detection.annotations import Findings
from fullfield.data.detection.outlines import FARTHEST, rle_runs
from fullfield.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["checked_polygons", "checked_rle"]

ODD = "Polygons left out because they have an odd number of coordinates"
FEW_POINTS = "Polygons left out because they have fewer than 3 points"
NO_NUMBERS = f"Polygons left out because a coordinate is not a number from -{FARTHEST:,.0f} to {FARTHEST:,.0f}"
WRONG_SIZE = "RLE outlines left out because their size is not that of their image"
DAMAGED = "RLE outlines left out because they are damaged"


def checked_polygons(
    polygons: Sequence[Any], findings: Findings, where: Callable[[], str]
) -> tuple[NDArray[np.float32], ...] | None:
    """Return polygons given as lists x1, y1, x2, y2, ... as arrays (P, 2) float32, or None if none can be used.

    Args:
        polygons: The lists, in pixels.
        findings: Where each polygon that cannot be used is counted.
        where: Returns the file and id for that.
    """
    usable = []
    for coordinates in polygons:
        try:
            polygon = np.array(coordinates, dtype=np.float32)
        except (TypeError, ValueError, OverflowError):
            polygon = np.array(np.nan, dtype=np.float32)
        if polygon.ndim != 1 or not abs(polygon).max(initial=0) <= FARTHEST:  # NaN is not less either
            findings.add(NO_NUMBERS, where())
        elif polygon.size % 2:
            findings.add(ODD, where())
        elif polygon.size < 6:
            findings.add(FEW_POINTS, where())
        else:
            usable.append(polygon.reshape(-1, 2))
    return tuple(usable) or None


def checked_rle(
    rle: Mapping[str, Any], height: int, width: int, findings: Findings, where: Callable[[], str]
) -> Mapping[str, Any] | None:
    """Return an RLE as it is, or None if its size is not that of its image or its counts are damaged.

    Args:
        rle: {"size": [height, width], "counts": ...}.
        height: Of the image, pixels.
        width: Of the image, pixels.
        findings: Where an RLE that cannot be used is counted.
        where: Returns the file and id for that.
    """
    try:
        size = list(rle["size"])
        if size == [height, width]:
            rle_runs(rle)
            return {"size": size, "counts": rle["counts"]}
    except (KeyError, TypeError, DataError):
        findings.add(DAMAGED, where())
        return None
    findings.add(
        WRONG_SIZE, f"{where()}, {size[0]} x {size[-1]} for an image of {height} x {width}" if size else where()
    )
    return None
