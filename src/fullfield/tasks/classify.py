"""The classification task: a model and its loss, with label smoothing and mixing of images.

Mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019) are torchvision's; where both are on, each batch takes one
of them at random. The task knows no optimiser and no epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from fullfield.data import ImageBatch
from fullfield.tasks.metrics import ClassificationMetrics
from fullfield.tasks.task import Task

__all__ = ["ClassificationTask"]


class ClassificationTask(Task):
    """A classifier with its training loss.

    Args:
        model: Module (B, C, S, S) -> (B, num_classes).
        num_classes: At least 2.
        label_smoothing: Share of the target spread evenly over all classes.
        mixup: Alpha of mixup's Beta distribution; 0 for none.
        cutmix: Alpha of CutMix's; 0 for none.
        distill: From the loss, the logits (B, num_classes) and the images that they are of, to the loss with a
            teacher's part in it.
    """

    kind: ClassVar[str] = "classify"
    score_name: ClassVar[str] = "top1"

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        *,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        distill: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.distill = distill
        mixes: list[Any] = []
        if mixup > 0:
            mixes.append(v2.MixUp(alpha=mixup, num_classes=num_classes))
        if cutmix > 0:
            mixes.append(v2.CutMix(alpha=cutmix, num_classes=num_classes))
        self.mix = v2.RandomChoice(mixes) if mixes else None

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, num_classes) of images (B, C, S, S)."""
        return self.model(images)  # type: ignore[no-any-return]

    def loss(self, batch: ImageBatch) -> Tensor:
        """Return the mean cross-entropy of a batch, nats, on images that may be mixed.

        Args:
            batch: Images and labels; at least one image.
        """
        images, targets = batch.images, batch.labels
        if self.mix is not None and len(images) > 1:
            images, targets = self.mix(images, targets)  # targets become (B, num_classes) shares
        logits = self(images)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        targets = targets.to(logits.dtype) if targets.is_floating_point() else targets
        loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        return loss if self.distill is None else self.distill(loss, logits, images)

    def idle(self, blank: Tensor) -> Tensor:
        """Return a loss of 0 whose gradients, zeros, come by way of the net."""
        return self(blank).sum() * 0.0  # type: ignore[no-any-return]

    def metrics(self, *, synced: bool = False) -> ClassificationMetrics:
        """Return an empty accumulator of top-1 and what goes with it."""
        return ClassificationMetrics(self.num_classes, synced=synced)

    def validate(self, batch: ImageBatch, metrics: ClassificationMetrics) -> None:
        """Count a validation batch."""
        metrics.update(self(batch.images), batch.labels)
