"""The figures of semantic segmentation: IoU and accuracy of each class, their means, pixel accuracy.

All follow from one confusion matrix of pixels over the whole data set, kept in int64, so that they are exact over any
images and processes. Means are over the classes that occur in the truth or the predictions (IoU) or in the truth
(accuracy), as in mmsegmentation and the PASCAL VOC and ADE20K benchmarks. Shares are between 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fullfield.errors import DataError
from fullfield.tasks.task import Metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SegmentationMetrics", "SegmentationResult"]


@dataclass(frozen=True, eq=False)
class SegmentationResult:
    """Figures over one pass of a data set."""

    images: int
    confusion: NDArray[np.int64]
    """(classes, classes) pixels: rows are true classes, columns predicted ones. Ignored pixels are not in it."""
    loss: float | None = None
    """Mean cross-entropy of a pixel, nats; None where it was not asked for."""

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each class, (classes,); NaN where it is neither in the truth nor predicted."""
        right = np.diag(self.confusion)
        union = self.confusion.sum(axis=1) + self.confusion.sum(axis=0) - right
        return np.where(union > 0, right / np.maximum(union, 1), np.nan)

    @property
    def acc(self) -> NDArray[np.float64]:
        """Share of each class's pixels that were found, (classes,); NaN where it is not in the truth."""
        true = self.confusion.sum(axis=1)
        return np.where(true > 0, np.diag(self.confusion) / np.maximum(true, 1), np.nan)

    @property
    def miou(self) -> float:
        """Mean of `iou` over the classes that have one; NaN without a labelled pixel."""
        return _mean(self.iou)

    @property
    def macc(self) -> float:
        """Mean of `acc` over the classes that have one; NaN without a labelled pixel."""
        return _mean(self.acc)

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels that are right; NaN without one."""
        pixels = int(self.confusion.sum())
        return int(np.trace(self.confusion)) / pixels if pixels else float("nan")

    @property
    def majority_miou(self) -> float:
        """What always answering the most frequent true class reaches in `miou`; NaN without a labelled pixel."""
        true = self.confusion.sum(axis=1)
        classes = int((true > 0).sum())
        return float(true.max() / true.sum() / classes) if classes else float("nan")

    @property
    def score(self) -> float:
        """The figure by which epochs are compared: `miou`; 0 without a labelled pixel."""
        return self.miou if np.isfinite(self.miou) else 0.0

    def scalars(self) -> dict[str, float]:
        """Return the single numbers by name, as they are printed and stored."""
        figures = {
            "images": float(self.images),
            "loss": self.loss,
            "miou": self.miou,
            "macc": self.macc,
            "pixel_accuracy": self.pixel_accuracy,
            "majority_miou": self.majority_miou,
        }
        return {name: value for name, value in figures.items() if value is not None}


class SegmentationMetrics(Metrics):
    """Accumulator of a `SegmentationResult`.

    Args:
        num_classes: At least 2.
        ignore_index: The label of pixels that do not count.
        synced: Whether `compute` is over all processes, which must then all call it; else over this one alone.
    """

    def __init__(self, num_classes: int, ignore_index: int, *, synced: bool = False) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.synced = synced
        # a buffer, so that it follows `.to(device)`: a process group sums where its network can reach
        self.confusion: Tensor
        self.register_buffer("confusion", torch.zeros(num_classes, num_classes, dtype=torch.int64), persistent=False)
        self.images = 0
        self.loss_sum = 0.0
        self.loss_pixels = 0

    @torch.no_grad()
    def update(self, labels_true: Tensor, labels_pred: Tensor, *, cross_entropy: Tensor | None = None) -> None:
        """Count one image.

        Args:
            labels_true: (H, W) integers, 0 to classes - 1 or `ignore_index`.
            labels_pred: (H, W) integers, 0 to classes - 1.
            cross_entropy: Summed over the labelled pixels, nats.

        Raises:
            DataError: The sizes differ, or a label is none of the classes.
        """
        if labels_true.shape != labels_pred.shape:
            raise DataError(f"a label map of {_size(labels_true)} does not fit a prediction of {_size(labels_pred)}")
        device = self.confusion.device
        true, predicted = labels_true.to(device).long(), labels_pred.to(device).long()
        valid = true != self.ignore_index
        true, predicted = true[valid], predicted[valid]
        for what, labels in (("label map", true), ("prediction", predicted)):
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
                raise DataError(
                    f"a {what} has labels from {int(labels.min())} to {int(labels.max())}; classes are 0 to"
                    f" {self.num_classes - 1}, and {self.ignore_index} is ignored"
                )
        pairs = torch.bincount(true * self.num_classes + predicted, minlength=self.num_classes**2)
        self.confusion += pairs.view_as(self.confusion)
        self.images += 1
        if cross_entropy is not None:
            self.loss_sum += float(cross_entropy)
            self.loss_pixels += len(true)

    def compute(self) -> SegmentationResult:
        """Return the figures over all images since the last `reset`."""
        confusion, images, loss_sum, loss_pixels = self.confusion, self.images, self.loss_sum, self.loss_pixels
        if self.synced and dist.is_available() and dist.is_initialized():
            confusion = confusion.clone()
            counts = torch.tensor([images, loss_pixels], device=confusion.device)
            loss = torch.tensor(loss_sum, dtype=torch.float64, device=confusion.device)
            for total in (confusion, counts, loss):
                dist.all_reduce(total)
            (images, loss_pixels), loss_sum = counts.tolist(), float(loss)
        mean_loss = loss_sum / loss_pixels if loss_pixels else None
        return SegmentationResult(images, confusion.cpu().numpy().copy(), mean_loss)

    def reset(self) -> None:
        """Start over."""
        self.confusion.zero_()
        self.images = self.loss_pixels = 0
        self.loss_sum = 0.0


def _mean(values: NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _size(labels: Tensor) -> str:
    return " x ".join(map(str, reversed(labels.shape))) + " pixels"
