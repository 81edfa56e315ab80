"""From a segmenter's logits to `SegmentationPrediction`, in numpy; needs no PyTorch.

The logits are brought to the picture's pixels bilinearly, corners not aligned and not antialiased, like PyTorch's
`interpolate`, in strips: at the size of a photograph all classes at once would not fit into memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fullfield.tasks.segmentation.answers import SegmentationPrediction, label_map, shares_of

__all__ = ["likeliest_labels", "pixel_answer"]

_STRIP_VALUES = 2**22  # 16 MiB of float32

Array = NDArray[Any]


def pixel_answer(
    path: Path, logits: Array, classes: Sequence[str], *, seen: tuple[int, int], original: tuple[int, int]
) -> SegmentationPrediction:
    """Return the likeliest class of each pixel of the original.

    Args:
        path: Of the image.
        logits: (K, H, W) at the pixels of the padded input.
        classes: The K names.
        seen: Height and width of the image in the input, without padding, pixels.
        original: Height and width of the original, pixels.
    """
    labels = label_map(likeliest_labels(logits[:, : seen[0], : seen[1]], original), classes)
    return SegmentationPrediction(path, labels, shares_of(labels, classes))


def likeliest_labels(logits: Array, size: tuple[int, int]) -> NDArray[np.int64]:
    """Return the class with the largest logit at each pixel, (H, W), of ties the first.

    Args:
        logits: (K, h, w) float32.
        size: H and W of the answer, pixels.
    """
    if logits.shape[1:] == size:
        labels: NDArray[np.int64] = logits.argmax(axis=0)
        return labels
    classes, rows, columns = logits.shape
    height, width = size
    labels = np.empty(size, np.int64)
    left, right, across = _neighbours(columns, width)
    above, below, down = _neighbours(rows, height)
    at_once = max(1, _STRIP_VALUES // (classes * max(width, columns)))
    for top in range(0, height, at_once):
        strip = slice(top, top + at_once)
        tall = _between(logits[:, above[strip]], logits[:, below[strip]], down[strip, None])
        labels[strip] = _between(tall[:, :, left], tall[:, :, right], across).argmax(axis=0)
    return labels


def _neighbours(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return for each of `new` pixels the two of `old` it lies between, and the weight of the second."""
    place = np.maximum((np.arange(new) + 0.5) * (old / new) - 0.5, 0)
    first = np.minimum(place.astype(np.int64), old - 1)
    return first, np.minimum(first + 1, old - 1), (place - first).astype(np.float32)


def _between(first: Array, second: Array, weight: Array) -> Array:
    """Return first + weight (second - first), in the memory of the second."""
    second -= first
    second *= weight
    second += first
    return second
