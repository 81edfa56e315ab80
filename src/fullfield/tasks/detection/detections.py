"""What a detector says about one image, in the pixels of the original."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import clip_boxes_to_image

__all__ = ["Detections", "in_original_pixels"]


@dataclass(frozen=True, eq=False)
class Detections:
    """The N objects found in one image, the surest first; N may be 0.

    Attributes:
        boxes: (N, 4) float32, left, top, right, bottom, pixels of the original image and within it.
        scores: (N,) float32, 0 to 1, descending.
        labels: (N,) int64, positions in the classes, from 0.
        masks: (N, H, W) bool at the size of the original image, or None where the head draws no outlines.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def to(self, device: torch.device | str) -> Detections:
        """Return the same detections on another device."""
        masks = None if self.masks is None else self.masks.to(device)
        return Detections(self.boxes.to(device), self.scores.to(device), self.labels.to(device), masks)


def in_original_pixels(found: Mapping[str, Tensor], seen: tuple[int, int], original: tuple[int, int]) -> Detections:
    """Return what a head found in a resized image as detections in the original.

    Boxes that have no area within the image are left out. Masks are pasted one by one, because N maps of floating
    point at the size of a photograph would not fit into memory.

    Args:
        found: boxes (N, 4), scores (N,), labels (N,) and, of a mask head, masks (N, 1, M, M): the probability that a
            place of the box belongs to the object.
        seen: Height and width of the image that the net saw, pixels, without padding.
        original: Height and width of the original image, pixels.
    """
    boxes = clip_boxes_to_image(resize_boxes(found["boxes"], seen, original), original).float()
    order = found["scores"].argsort(descending=True, stable=True)
    order = order[((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)[order]]
    boxes = boxes[order]
    masks = None
    if "masks" in found:
        masks = torch.zeros(len(order), *original, dtype=torch.bool, device=boxes.device)
        for mask, index, box in zip(masks, order, boxes, strict=True):
            mask.copy_(paste_masks_in_image(found["masks"][index][None].float(), box[None], original)[0, 0] > 0.5)
    return Detections(boxes, found["scores"][order].float(), found["labels"][order], masks)
