"""The figures of image classification: top-1, top-5, per-class recall and the confusion matrix.

Accumulated by torchmetrics, so that they are exact over any batches and processes. Shares are between 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fullfield.errors import MissingExtraError
from fullfield.tasks.task import Metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ClassificationMetrics", "ClassificationResult"]


@dataclass(frozen=True)
class ClassificationResult:
    """Figures over one pass of a data set."""

    images: int
    loss: float
    """Mean cross-entropy, nats."""
    top1: float
    top5: float | None
    """None with five classes or fewer, where it says nothing."""
    confusion: NDArray[np.int64]
    """(classes, classes): rows are true classes, columns predicted ones."""

    @property
    def score(self) -> float:
        """Top-1, by which epochs are compared."""
        return self.top1

    @property
    def recall(self) -> NDArray[np.float64]:
        """Share of each class's images that were recognised, (classes,); NaN where a class has no image."""
        totals = self.confusion.sum(axis=1)
        return np.where(totals > 0, np.diag(self.confusion) / np.maximum(totals, 1), np.nan)

    @property
    def mean_recall(self) -> float:
        """Mean of `recall` over the classes that have images: accuracy with every class weighing the same."""
        return float(np.nanmean(self.recall))

    @property
    def majority(self) -> float:
        """Share of the most frequent true class: what a constant answer reaches."""
        return float(self.confusion.sum(axis=1).max() / max(self.images, 1))

    def scalars(self) -> dict[str, float]:
        """The single numbers by name, as they are printed and stored."""
        figures = {
            "images": float(self.images),
            "loss": self.loss,
            "top1": self.top1,
            "top5": self.top5,
            "mean_recall": self.mean_recall,
            "majority": self.majority,
        }
        return {name: value for name, value in figures.items() if value is not None}


def _alone() -> bool:
    return False


class ClassificationMetrics(Metrics):
    """Accumulator of a `ClassificationResult`.

    Args:
        num_classes: At least 2.
        synced: Whether `compute` is over all processes, which must then all call it; else over this one alone.

    Raises:
        MissingExtraError: torchmetrics is not installed.
    """

    def __init__(self, num_classes: int, *, synced: bool = False) -> None:
        super().__init__()
        try:
            from torchmetrics import MeanMetric, SumMetric
            from torchmetrics.classification import MulticlassConfusionMatrix
        except ImportError as error:
            raise MissingExtraError("evaluating needs torchmetrics: pip install 'fullfield[train]'") from error
        self.num_classes = num_classes
        how: dict[str, Any] = {} if synced else {"distributed_available_fn": _alone}
        self.confusion: Any = MulticlassConfusionMatrix(num_classes, validate_args=False, **how)
        self.loss: Any = MeanMetric(nan_strategy="disable", **how)
        self.top5_hits: Any = SumMetric(**how)

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Args:
            logits: (B, classes), any floating dtype.
            labels: (B,), int64.
        """
        if not len(labels):
            return
        logits = logits if logits.dtype == torch.float64 else logits.float()
        # one value an image: torchmetrics 1.9 drops the weight of a batch's mean where NaN is let through
        self.loss.update(F.cross_entropy(logits, labels, reduction="none"))
        self.confusion.update(logits.argmax(dim=1), labels)
        if self.num_classes > 5:
            self.top5_hits.update((logits.topk(5, dim=1).indices == labels[:, None]).any(dim=1).sum())

    def compute(self) -> ClassificationResult:
        """Return the figures over all batches since the last `reset`."""
        confusion = self.confusion.compute().cpu().numpy().astype(np.int64)
        images = int(confusion.sum())
        top5 = float(self.top5_hits.compute()) / max(images, 1) if self.num_classes > 5 else None
        top1 = float(np.trace(confusion)) / max(images, 1)
        return ClassificationResult(
            images, float(self.loss.compute()) if images else float("nan"), top1, top5, confusion
        )

    def reset(self) -> None:
        """Start over."""
        for metric in (self.confusion, self.loss, self.top5_hits):
            metric.reset()
