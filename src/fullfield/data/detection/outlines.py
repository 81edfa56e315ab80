"""Outlines of objects as masks, as COCO's run-length encoding (RLE), and their areas.

An outline is a tuple of polygons or an RLE, as `Objects` says. Polygons become pixels by COCO's own rule (maskApi.c,
`rleFrPoly`) through faster-coco-eval, so that masks are those that COCO's evaluation sees; an object of several
polygons is their union. An RLE lists the lengths of the runs of 0 and 1, in turn and beginning with 0, down the
columns; its compressed form writes them as text, five bits of a number to a character. It is decoded here, because
what a damaged text does to a library depends on its version.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from fullfield.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FARTHEST", "mask_to_rle", "outline_area", "outline_to_mask", "outline_to_rle", "rle_runs", "rle_to_mask"]

FARTHEST = 100_000.0
"""Coordinates of a polygon may be so many pixels from 0; drawing takes time in proportion."""

# A polygon's coordinates are float32, which holds three decimals up to 8192 pixels. Rounded to them they are again
# the numbers of the file (239.9, not 239.899994), on which the rounding of rleFrPoly depends.
DECIMALS = 3


def outline_to_rle(
    outline: tuple[NDArray[np.float32], ...] | Mapping[str, Any], height: int, width: int
) -> dict[str, Any]:
    """Return an outline as compressed RLE, fit for JSON.

    Args:
        outline: Polygons, each (P, 2) x and y in pixels, at least three points; or an RLE. No polygons: an empty mask.
        height: Of the image, pixels.
        width: Of the image, pixels.

    Returns:
        {"size": [height, width], "counts": text}.

    Raises:
        DataError: A polygon has too few points or an impossible coordinate, or the RLE is damaged or of another size.
        MissingExtraError: faster-coco-eval is not installed.
    """
    library = _mask_library()
    if isinstance(outline, Mapping):
        runs = _fitting_runs(outline, height, width).tolist()
        return _as_text(library.frPyObjects({"size": [height, width], "counts": runs}, height, width))
    if not outline:
        return mask_to_rle(np.zeros((height, width), dtype=np.bool_))
    polygons = []
    for polygon in outline:
        if polygon.ndim != 2 or polygon.shape[1] != 2 or len(polygon) < 3:
            raise DataError(
                f"a polygon of shape {polygon.shape} encloses nothing; it needs at least 3 points of x and y."
            )
        if not (abs(polygon) <= FARTHEST).all():  # true for NaN as well
            raise DataError(f"a polygon has a coordinate that is not finite or beyond {FARTHEST:,.0f} pixels; mend it.")
        polygons.append(np.round(polygon.astype(np.float64), DECIMALS).ravel().tolist())
    return _as_text(library.merge(library.frPyObjects(polygons, height, width)))


def outline_to_mask(
    outline: tuple[NDArray[np.float32], ...] | Mapping[str, Any], height: int, width: int
) -> NDArray[np.bool_]:
    """Return an outline as a mask (height, width) bool; arguments and errors as in `outline_to_rle`.

    Raises:
        DataError: The outline is impossible.
        MissingExtraError: It is polygons, and faster-coco-eval is not installed.
    """
    if isinstance(outline, Mapping):
        return _from_runs(_fitting_runs(outline, height, width), height, width)
    return rle_to_mask(outline_to_rle(outline, height, width))


def mask_to_rle(mask: NDArray[np.bool_] | NDArray[np.uint8]) -> dict[str, Any]:
    """Return a mask (H, W), bool or 0 and 1, as compressed RLE: {"size": [H, W], "counts": text}.

    Raises:
        DataError: The mask has not two axes.
        MissingExtraError: faster-coco-eval is not installed.
    """
    if mask.ndim != 2:
        raise DataError(f"a mask of shape {mask.shape} has not the two axes height and width; give one mask at a time.")
    return _as_text(_mask_library().encode(np.asfortranarray(mask, dtype=np.uint8)))


def rle_to_mask(rle: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Return an RLE, compressed or not, as a mask (H, W) bool.

    Raises:
        DataError: The RLE is damaged.
    """
    runs = rle_runs(rle)
    height, width = (int(side) for side in rle["size"])
    return _from_runs(runs, height, width)


def rle_runs(rle: Mapping[str, Any]) -> NDArray[np.int64]:
    """Return the lengths of the runs of an RLE, int64: of 0, of 1, of 0, and so on.

    Args:
        rle: {"size": [height, width], "counts": ...}, the counts compressed (bytes or text) or a list of lengths.

    Raises:
        DataError: The counts are no RLE or their sum is not height × width.
    """
    try:
        height, width = (int(side) for side in rle["size"])
        counts = rle["counts"]
        runs = _decompressed(counts) if isinstance(counts, str | bytes) else np.asarray(counts, dtype=np.int64)
    except (KeyError, TypeError, ValueError, OverflowError, UnicodeEncodeError) as error:
        raise DataError(f"an RLE is damaged ({error}); write it again from its mask.") from error
    if runs.ndim != 1 or (runs < 0).any() or runs.sum() != height * width:
        raise DataError(
            f"an RLE of {runs.sum()} pixels does not fit its size of {height} x {width}; write it again from its mask."
        )
    return runs


def outline_area(outline: tuple[NDArray[np.float32], ...] | Mapping[str, Any]) -> float:
    """Return the area of an outline in pixels, as COCO's files give it.

    That is the number of pixels of an RLE, and for polygons the sum of their areas by the shoelace formula, not the
    number of pixels that they cover; overlaps count twice.

    Raises:
        DataError: The RLE is damaged.
    """
    if isinstance(outline, Mapping):
        return float(rle_runs(outline)[1::2].sum())
    area = 0.0
    for polygon in outline:
        x, y = (polygon - polygon[0]).astype(np.float64).T  # from a corner: large coordinates would cost digits
        area += abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    return area


def _fitting_runs(rle: Mapping[str, Any], height: int, width: int) -> NDArray[np.int64]:
    runs = rle_runs(rle)
    if [int(side) for side in rle["size"]] != [height, width]:
        raise DataError(
            f"an RLE of size {list(rle['size'])} does not fit an image of height {height} and width {width}; encode "
            "the mask at the size of its image."
        )
    return runs


def _from_runs(runs: NDArray[np.int64], height: int, width: int) -> NDArray[np.bool_]:
    inside = np.zeros(len(runs), dtype=np.bool_)
    inside[1::2] = True
    return np.repeat(inside, runs).reshape(width, height).T


def _decompressed(counts: str | bytes) -> NDArray[np.int64]:
    """Decode COCO's text (maskApi.c, `rleFrString`).

    A number takes five bits of each of its characters, the lowest first; bit 6 says that another character follows,
    and the highest bit of the last is the sign. From the fourth number on, each is the difference to the last but one.
    """
    text = counts.encode("ascii") if isinstance(counts, str) else counts
    codes = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    if codes.size == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("its text is cut off or has impossible characters")
    ends = np.flatnonzero(codes < 32)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits; no image has so many pixels
        raise ValueError("its text has an impossible number")
    shifts = 5 * (np.arange(codes.size) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((codes & 31) << shifts, starts)
    numbers -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def _as_text(rle: Mapping[str, Any]) -> dict[str, Any]:
    counts = rle["counts"]
    return {
        "size": [int(side) for side in rle["size"]],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }


def _mask_library() -> Any:
    try:
        return import_module("faster_coco_eval.core.mask")
    except ModuleNotFoundError as error:
        raise MissingExtraError("outlines need faster-coco-eval: pip install 'fullfield[detect]'") from error
