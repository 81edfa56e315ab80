"""From a detector's boxes and scores to `DetectionPrediction`, in numpy; needs no PyTorch.

The choice is that of torchvision's RetinaNet and FCOS (`postprocess_detections`): of each map the candidates above the
threshold, the surest first; clipped to the image; of each class only boxes that do not overlap a surer one (Girshick et
al. 2014, non-maximum suppression); the surest of what remains. Where scores tie, the earlier place comes first, which
torchvision leaves open. Unlike there, a box with NaN or infinity is dropped, so that it can't decide over others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fullfield.deploy.description import Selection
from fullfield.errors import CheckpointError
from fullfield.tasks.detection.answers import DetectionPrediction
from fullfield.tasks.detection.coco_form import Detection

__all__ = ["Objects", "choose_objects", "object_answer"]

_SHIFTED_VALUES = 4000  # torchvision shifts the classes apart where boxes have at most so many values, on a CPU

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Objects:
    """The M objects chosen in one image, the surest first; M may be 0.

    Attributes:
        boxes: (M, 4) float32, left, top, right, bottom, pixels.
        scores: (M,) float32.
        labels: (M,) int64, positions in the classes.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]


def object_answer(
    path: Path,
    found: Objects,
    classes: Sequence[str],
    *,
    seen: tuple[int, int],
    original: tuple[int, int],
    threshold: float,
) -> DetectionPrediction:
    """Return objects in the pixels of the original, without those that have no area there.

    Args:
        path: Of the image.
        found: In the image that the net saw.
        classes: The model's.
        seen: Height and width of the image that the net saw, without padding, pixels.
        original: Height and width of the original, pixels.
        threshold: Objects with a lower score are left out.
    """
    scale = (np.array(original, np.float32) / np.array(seen, np.float32))[[1, 0, 1, 0]]
    boxes = _clipped(found.boxes * scale, original)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & (found.scores.astype(np.float64) >= threshold)
    objects = tuple(
        Detection(classes[label], int(label), float(score), (left, top, right, bottom))
        for label, score, (left, top, right, bottom) in zip(
            found.labels[kept].tolist(), found.scores[kept].tolist(), boxes[kept].tolist(), strict=True
        )
    )
    return DetectionPrediction(path, objects, original)


def choose_objects(
    boxes: Array, scores: Array, selection: Selection, *, padded: tuple[int, int], seen: tuple[int, int]
) -> Objects:
    """Choose objects among the boxes of one image.

    Args:
        boxes: (N, 4) left, top, right, bottom, pixels of the input, not clipped; of all maps, the finest first.
        scores: (N, K) probabilities.
        selection: How to choose.
        padded: Height and width of the input, pixels: they give the number of boxes of each map.
        seen: Height and width of the image in it, pixels: boxes are clipped to it.

    Raises:
        CheckpointError: There are not as many boxes as the maps have.
    """
    counts = [selection.boxes_per_place * -(-padded[0] // s) * -(-padded[1] // s) for s in selection.strides]
    if boxes.shape != (sum(counts), 4) or len(scores) != sum(counts):
        raise CheckpointError(
            f"the file gives boxes {boxes.shape} and scores {scores.shape} for an input of {padded[0]} x {padded[1]};"
            f" its maps have {sum(counts)} places. Export it again with `fullfield export`"
        )
    classes = scores.shape[1]
    chosen = []
    start = 0
    for count in counts:
        level = scores[start : start + count].reshape(-1)
        chosen.append(_candidates(level, selection) + start * classes)
        start += count
    places = np.concatenate(chosen)
    candidates = _clipped(boxes[places // classes].astype(np.float32), seen)
    sound = np.isfinite(candidates).all(axis=1)
    places, candidates = places[sound], candidates[sound]
    surest = scores.reshape(-1)[places].astype(np.float32)
    labels = places % classes
    kept = _without_overlaps(candidates, surest, labels, selection)
    return Objects(candidates[kept], surest[kept], labels[kept])


def _candidates(scores: Array, selection: Selection) -> NDArray[np.int64]:
    """Return where the surest scores of a map are, descending; NaN is none."""
    above = np.flatnonzero(scores > np.float32(selection.score_threshold))
    values = scores[above]
    if len(above) > selection.candidates:
        # sorting them all would take longer than the net on a large image with many classes
        least = np.partition(values, len(values) - selection.candidates)[len(values) - selection.candidates]
        surer, equal = np.flatnonzero(values > least), np.flatnonzero(values == least)
        picked = np.sort(np.concatenate([surer, equal[: selection.candidates - len(surer)]]))
        above, values = above[picked], values[picked]
    return above[np.argsort(-values, kind="stable")]


def _without_overlaps(boxes: Array, scores: Array, labels: Array, selection: Selection) -> list[int]:
    """Return which boxes remain, the surest first, at most `selection.detections`."""
    apart = boxes
    if boxes.size and boxes.size <= _SHIFTED_VALUES:  # so that float32 rounds as in torchvision
        apart = boxes + labels.astype(np.float32)[:, None] * (boxes.max() + np.float32(1))
    areas = (apart[:, 2] - apart[:, 0]) * (apart[:, 3] - apart[:, 1])
    left = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(left) and len(kept) < selection.detections:
        best, left = int(left[0]), left[1:]
        kept.append(best)
        low = np.maximum(apart[best, :2], apart[left, :2])
        high = np.minimum(apart[best, 2:], apart[left, 2:])
        inside = np.clip(high - low, 0, None).prod(axis=1)
        with np.errstate(invalid="ignore"):  # two boxes without area
            overlap = inside / (areas[best] + areas[left] - inside)
        left = left[~((labels[left] == labels[best]) & (overlap > np.float64(selection.nms_threshold)))]
    return kept


def _clipped(boxes: Array, size: tuple[int, int]) -> NDArray[np.float32]:
    """Return boxes (N, 4) within an image of a height and width."""
    height, width = size
    clipped: NDArray[np.float32] = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    return clipped
