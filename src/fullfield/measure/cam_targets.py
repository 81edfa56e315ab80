"""What a class-activation map explains: one number of a model's output, for classifiers, dense models and detectors.

A target is found from the output itself: logits (B, K), a map of logits (B, K, h, w), or torchvision's list of
dictionaries of boxes. It has two sides. `scalar` is the number whose gradient the map is made of: the logit
of a class or its sum over the pixels of the class, by the `grad-cam` library's own callables, or the score of the
surest box, which in one-stage and two-stage heads alike is computed from the maps that the box was found on.
`confidence` is what deletion and insertion follow, a number between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from fullfield.errors import ConfigError, MissingExtraError, nearest

__all__ = ["Target", "find_target", "grad_cam_library", "one_output"]


@dataclass(frozen=True)
class Target:
    """One number of a model's output."""

    task: str
    """"classify", "segment" or "detect"."""
    index: int
    """The class."""
    name: str
    scalar: Callable[[Any], Tensor]
    """Output of one image -> the number to differentiate."""
    confidence: Callable[[Any], Tensor]
    """Output of a batch -> (B,), float32 in [0, 1]: the probability of the class; over the pixels that have it now, for
    segmentation; for detection, the best score times overlap with the box (D-RISE, Petsiuk et al. 2021)."""
    box: tuple[float, float, float, float] | None = None
    """The detected box: left, top, right, bottom, pixels."""
    note: str = ""
    """What the reader must know of the place that is explained; "" for nothing."""


def grad_cam_library(module: str = "") -> Any:
    """Import the `grad-cam` library, or a module of it.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return import_module(f"pytorch_grad_cam{module}")
    except ImportError as error:
        raise MissingExtraError(
            f"class-activation maps need grad-cam ({error}): pip install 'fullfield[look]'"
        ) from error


def one_output(output: Any) -> Any:
    """Return the tensor or the detections of a model's output: `out` of a dictionary, the first of a tuple."""
    if isinstance(output, Mapping) and "out" in output:
        return output["out"]
    return output[0] if isinstance(output, tuple) and output else output


def find_target(output: Any, target: int | str | None, classes: Sequence[str]) -> Target:
    """Find what to explain.

    Args:
        output: Of one image, as `one_output` gives it.
        target: A class by index or name. None takes the likeliest class, the class with the largest area, or the
            detection with the highest score. Of a class in a map of logits the pixels that the model gives to it are
            explained, or all pixels, with a note, if there are none.
        classes: Names by index; may be empty.

    Raises:
        ConfigError: There is no such class, no detection of it, or no foreground at all; or the output is of no kind
            that is known here.
        MissingExtraError: grad-cam is not installed.
    """
    if isinstance(output, Tensor) and output.ndim == 2:
        return _of_logits(output, target, classes)
    if isinstance(output, Tensor) and output.ndim == 4:
        return _of_dense_logits(output, target, classes)
    if isinstance(output, list) and output and isinstance(output[0], Mapping) and "boxes" in output[0]:
        return _of_boxes(output[0], target, classes)
    told = f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    raise ConfigError(
        f"the model returns {told}, which is neither logits (B, K), a map of logits (B, K, h, w) nor a list of"
        " detections; wrap the model in a module that returns one of them"
    )


def _of_logits(logits: Tensor, target: int | str | None, classes: Sequence[str]) -> Target:
    index = int(logits[0].argmax()) if target is None else _class_index(target, logits.shape[1], classes)
    scalar = grad_cam_library(".utils.model_targets").ClassifierOutputTarget(index)

    def confidence(output: Tensor) -> Tensor:
        return output.float().softmax(dim=1)[:, index]

    return Target("classify", index, _class_name(index, classes), scalar, confidence)


def _of_dense_logits(logits: Tensor, target: int | str | None, classes: Sequence[str]) -> Target:
    binary = logits.shape[1] == 1
    labels = (logits[0, 0] > 0).long() - 1 if binary else logits[0].argmax(dim=0)  # -1: background of one channel
    present = labels[labels >= 0].bincount(minlength=logits.shape[1])
    if target is None and not bool(present.any()):
        raise ConfigError("the model marks no pixel of this image as foreground, so there is no region to explain")
    index = int(present.argmax()) if target is None else _class_index(target, logits.shape[1], classes)
    mask, note = labels == index, ""
    if present[index] == 0:
        found = ", ".join(_class_name(int(i), classes) for i in present.nonzero().flatten()) or "only background"
        mask = torch.ones_like(mask)
        note = (
            f"no pixel of this image is {_class_name(index, classes)!r} for the model, which finds {found}: the map is"
            " of the class's logit over all pixels"
        )
    targets = grad_cam_library(".utils.model_targets")
    # the sum over the pixels, of which the map is that of the mean: it is scaled to its peak
    scalar = targets.SemanticSegmentationTarget(index, mask.cpu().numpy())

    def confidence(output: Tensor) -> Tensor:
        probability = output.float().sigmoid() if binary else output.float().softmax(dim=1)
        return probability[:, index][:, mask].mean(dim=1)

    return Target("segment", index, _class_name(index, classes), scalar, confidence, note=note)


def _of_boxes(found: Mapping[str, Tensor], target: int | str | None, classes: Sequence[str]) -> Target:
    labels, boxes, scores = found["labels"], found["boxes"].detach(), found["scores"]
    if not len(labels):
        raise ConfigError("the model detects nothing in this image, so there is no box to explain")
    if target is None:
        best = int(scores.argmax())
    else:
        wanted = _class_index(target, max(len(classes), int(labels.max()) + 1), classes)
        if not bool((labels == wanted).any()):
            seen = ", ".join(_class_name(int(i), classes) for i in labels.unique())
            raise ConfigError(f"the model detects no {_class_name(wanted, classes)!r} in this image; it finds {seen}")
        best = int(torch.where(labels == wanted, scores, scores.new_tensor(-1.0)).argmax())
    index, box = int(labels[best]), boxes[best]

    def scalar(detections: Mapping[str, Tensor]) -> Tensor:
        # the library's own target takes the first box of the greatest overlap, whatever its class: heads that give one
        # box several classes would be explained by another class, or by nothing
        same = detections["labels"] == index
        overlap = box_iou(box[None], detections["boxes"].detach()[same])[0]
        return detections["scores"][same][overlap.argmax()] if bool(same.any()) else detections["scores"].sum() * 0

    def one(detections: Mapping[str, Tensor]) -> Tensor:
        same = detections["labels"] == index
        if not bool(same.any()):
            return torch.zeros((), device=box.device)
        overlap: Tensor = box_iou(box[None], detections["boxes"][same])[0]
        return (overlap * detections["scores"][same]).max().float()

    def confidence(output: Sequence[Mapping[str, Tensor]]) -> Tensor:
        return torch.stack([one(detections) for detections in output])

    left, top, right, bottom = (float(value) for value in box)
    return Target("detect", index, _class_name(index, classes), scalar, confidence, (left, top, right, bottom))


def _class_index(target: int | str, count: int, classes: Sequence[str]) -> int:
    """Return the index of a class given by name or index; a name that is a number means an index if no class has it."""
    if isinstance(target, str) and target in classes:
        return list(classes).index(target)
    if isinstance(target, int) or target.lstrip("-").isdigit():
        if 0 <= int(target) < count:
            return int(target)
        raise ConfigError(f"the model has classes 0 to {count - 1}, got {target}")
    known = f"; its first are {', '.join(map(repr, classes[:5]))}" if classes else "; give its index"
    raise ConfigError(f"the model has no class {target!r}{nearest(target, classes) or known}")


def _class_name(index: int, classes: Sequence[str]) -> str:
    return classes[index] if index < len(classes) else f"class {index}"
