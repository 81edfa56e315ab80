"""The check of what a detector is trained towards: wrong boxes are named rather than left to spoil the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fullfield.errors import DataError

__all__ = ["checked_targets"]


def checked_targets(
    targets: Sequence[Mapping[str, Tensor]] | None, images: Sequence[Tensor], num_classes: int, *, masks: bool
) -> list[dict[str, Tensor]]:
    """Return the targets without crowd regions, after a look at every value.

    What lies under a crowd region counts as background in the loss, as in torchvision's references.

    Args:
        targets: Of each image: boxes (N, 4) left, top, right, bottom in pixels; labels (N,) from 0; where given,
            crowd (N,) bool; for mask heads masks (N, H, W). N may be 0.
        images: (C, H, W) each.
        num_classes: Labels are below it.
        masks: Whether masks are needed.

    Raises:
        DataError: Targets are missing, of another shape than the image or its boxes, or a box has no area or is not
            finite, or a label is out of range; the message names the image's place in the batch.
    """
    if targets is None:
        raise DataError("a detector in training mode needs targets; give them, or call eval() to predict")
    if not images:
        raise DataError("there are no images to train on; give at least one")
    if len(targets) != len(images):
        raise DataError(f"there are {len(images)} images and {len(targets)} targets; give one target an image")
    kept = []
    for index, (target, image) in enumerate(zip(targets, images, strict=True)):
        needed = ("boxes", "labels", "masks") if masks else ("boxes", "labels")
        for key in needed:
            if key not in target:
                raise DataError(f"the target of image {index} of the batch has no {key}; {_remedy(key)}")
        count, size = len(target["labels"]), tuple(image.shape[1:])
        shapes = {"boxes": (count, 4), "labels": (count,), "crowd": (count,), "masks": (count, *size)}
        for key in (*needed, *(("crowd",) if "crowd" in target else ())):
            if tuple(target[key].shape) != shapes[key]:
                raise DataError(
                    f"{key} of image {index} of the batch have shape {tuple(target[key].shape)}; {count} objects in an"
                    f" image of {size[0]} × {size[1]} pixels need {shapes[key]}"
                )
        own = {key: target[key] for key in needed}
        if "crowd" in target:
            counted = (~target["crowd"].bool()).nonzero()[:, 0]
            own = {key: value[counted] for key, value in own.items()}
        own["labels"] = own["labels"].long()
        own["boxes"] = own["boxes"] if own["boxes"].is_floating_point() else own["boxes"].float()
        kept.append(own)
    _check_values(kept, num_classes)
    return kept


def _remedy(key: str) -> str:
    return "read the data with outlines, or choose a head without masks" if key == "masks" else "every target needs it"


def _check_values(targets: list[dict[str, Tensor]], num_classes: int) -> None:
    """Raise DataError for the first impossible box or label; the device is asked once for a good batch."""
    boxes = torch.cat([target["boxes"] for target in targets])
    labels = torch.cat([target["labels"] for target in targets])
    flat = ~((boxes[:, 2:] > boxes[:, :2]).all(1) & boxes.isfinite().all(1))  # NaN > x is False
    foreign = (labels < 0) | (labels >= num_classes)
    if not bool((flat | foreign).any()):
        return
    owner = [index for index, target in enumerate(targets) for _ in range(len(target["labels"]))]
    first = int((flat | foreign).nonzero()[0, 0])
    if bool(flat[first]):
        raise DataError(
            f"image {owner[first]} of the batch has the box {boxes[first].tolist()}; a box is left, top, right, bottom"
            " in pixels, finite, with right > left and bottom > top. Drop such boxes when reading or cropping"
        )
    raise DataError(
        f"image {owner[first]} of the batch has the label {int(labels[first])}; with {num_classes} classes labels run"
        f" from 0 to {num_classes - 1}"
    )
