"""The segmentation task: a segmenter with its loss, and its figures on images at their own size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fullfield.errors import ConfigError
from fullfield.tasks.segmentation.inference import WHOLE_IMAGE, InferenceOptions, logit_strips
from fullfield.tasks.segmentation.losses import SegmentationLoss
from fullfield.tasks.segmentation.mean_iou import SegmentationMetrics
from fullfield.tasks.segmentation.segmenter import Segmenter
from fullfield.tasks.task import Task

if TYPE_CHECKING:
    from fullfield.data.segmentation.dataset import SegmentationBatch

__all__ = ["SegmentationTask", "count_image"]


class SegmentationTask(Task):
    """A segmenter with its training loss.

    Args:
        model: With or without an auxiliary head.
        classes: Their names; a label is a position in here.
        ignore_index: The label of pixels that are neither learned nor counted.
        loss: Such as "cross_entropy+dice", see `read_loss`.
        class_weights: Of the cross-entropy, one a class.

    Raises:
        ConfigError: The loss can't be read, or numbers of classes differ.
    """

    kind: ClassVar[str] = "segment"
    score_name: ClassVar[str] = "miou"
    model: Segmenter

    def __init__(
        self,
        model: Segmenter,
        classes: Sequence[str],
        ignore_index: int,
        loss: str = "cross_entropy",
        *,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if len(classes) != model.num_classes:
            raise ConfigError(f"there are {len(classes)} classes, and the model has {model.num_classes}; make both so")
        if class_weights is not None and len(class_weights) != len(classes):
            raise ConfigError(f"there are {len(class_weights)} class weights and {len(classes)} classes")
        self.model = model
        self.classes = tuple(classes)
        self.ignore_index = ignore_index
        self.criterion = SegmentationLoss(loss, ignore_index, class_weights)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K, H, W) of images (B, C, H, W) with values from 0 to 1."""
        return self.model(images)  # type: ignore[no-any-return]

    def loss(self, batch: SegmentationBatch) -> Tensor:
        """Return the loss of a batch, with that of the auxiliary head by its weight.

        Args:
            batch: With at least one image.
        """
        logits, auxiliary = self.model.forward_auxiliary(batch.images)
        loss: Tensor = self.criterion(logits, batch.masks)
        if auxiliary is not None:
            loss = loss + self.model.auxiliary_weight * self.criterion(auxiliary, batch.masks)
        return loss

    def idle(self, blank: Tensor) -> Tensor:
        """Return a loss of 0 by way of the net, whose batch norms may be waited for by other processes."""
        logits, auxiliary = self.model.forward_auxiliary(blank)
        total = logits.sum() if auxiliary is None else logits.sum() + auxiliary.sum()
        return total * 0.0

    def metrics(self, *, synced: bool = False) -> SegmentationMetrics:
        """Return an empty accumulator; `synced` makes its figures those of all processes, which must all ask."""
        return SegmentationMetrics(self.model.num_classes, self.ignore_index, synced=synced)

    def validate(self, batch: SegmentationBatch, metrics: SegmentationMetrics) -> None:
        """Count images at their own size, seen whole; the model is in eval mode."""
        for image, labels in zip(batch.images, batch.masks, strict=True):
            count_image(self.model, image, labels, metrics)


def count_image(
    model: Segmenter,
    image: Tensor,
    labels: Tensor,
    metrics: SegmentationMetrics,
    options: InferenceOptions = WHOLE_IMAGE,
) -> None:
    """Predict one image and count it, with the cross-entropy of its pixels.

    Args:
        model: In eval mode.
        image: (C, H, W), values from 0 to 1; of the picture's own size, or resized by the preprocessing already.
        labels: (H', W') of the picture's own size, the truth; what is predicted is compared there.
        metrics: To count it in.
        options: How the image is looked at.
    """
    size = (labels.shape[0], labels.shape[1])
    predicted = torch.empty_like(labels)
    total = torch.zeros((), device=image.device)
    for rows, logits in logit_strips(model, image, options, size=size):
        predicted[rows] = logits.argmax(dim=0)
        total += F.cross_entropy(logits[None], labels[None, rows], ignore_index=metrics.ignore_index, reduction="sum")
    metrics.update(labels, predicted, cross_entropy=total)
