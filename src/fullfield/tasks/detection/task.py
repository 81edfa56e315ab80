"""The detection task: a detector with the sum of its losses, and COCO's average precision.

The detector computes its losses itself, because they are of its own anchors and proposals; the task adds them up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fullfield.data.detection.dataset import DetectionBatch
from fullfield.data.detection.objects import DetectionSample
from fullfield.errors import ConfigError
from fullfield.tasks.detection.average_precision import DetectionMetrics
from fullfield.tasks.detection.detector import Detector
from fullfield.tasks.task import Metrics, Task

__all__ = ["DetectionTask", "masks_evaluated"]


class DetectionTask(Task):
    """A detector with its training loss and its figures.

    Args:
        model: From images and targets to losses, and in eval mode from images to detections.
        classes: Names; a label is a position in here.
        validation: The samples that `DetectionBatch.indices` of a validation batch are positions in.

    Raises:
        ConfigError: The model has another number of classes.
    """

    kind: ClassVar[str] = "detect"
    score_name: ClassVar[str] = "ap"
    model: Detector

    def __init__(self, model: Detector, classes: Sequence[str], *, validation: Sequence[DetectionSample] = ()) -> None:
        super().__init__()
        if model.num_classes != len(classes):
            raise ConfigError(
                f"the detector has {model.num_classes} classes and {len(classes)} are named; build it with"
                f" num_classes={len(classes)}."
            )
        self.model = model
        self.classes = tuple(classes)
        self.validation = validation
        self.masks = masks_evaluated(model, validation)

    def loss(self, batch: DetectionBatch) -> Tensor:
        """Return the sum of the detector's losses of a training batch with at least one image.

        Args:
            batch: Images at their final size with their objects, on the model's device.
        """
        losses = self.model(batch.images, batch.targets).values()
        # added in float32 at least: under autocast some heads give half-precision losses
        return torch.stack([loss if loss.dtype == torch.float64 else loss.float() for loss in losses]).sum()

    def idle(self, blank: Tensor) -> Tensor:
        """Return a loss of 0 by way of the net, whose batch norms may be waited for by other processes."""
        nothing = {
            "boxes": blank.new_zeros(0, 4),
            "labels": torch.zeros(0, dtype=torch.int64, device=blank.device),
            "masks": blank.new_zeros(0, *blank.shape[-2:]),
        }
        losses = self.model(tuple(blank), [dict(nothing) for _ in blank]).values()
        return torch.stack(list(losses)).sum() * 0.0

    def metrics(self, *, synced: bool = False) -> DetectionMetrics:
        """Return an empty accumulator; `synced` makes its figures those of all processes, which must all ask."""
        return DetectionMetrics(self.classes, masks=self.masks, synced=synced)

    def validate(self, batch: DetectionBatch, metrics: Metrics) -> None:
        """Count a validation batch with at least one image; the model is in eval mode.

        Args:
            batch: Images of the samples `validation`, each at its own size.
            metrics: As `metrics` returns it.
        """
        assert isinstance(metrics, DetectionMetrics)  # noqa: S101 - for the type checker
        metrics.update([self.validation[index] for index in batch.indices.tolist()], self.model(batch.images))


def masks_evaluated(model: Detector, samples: Sequence[DetectionSample]) -> bool:
    """Return whether masks are evaluated beside boxes: the head gives them, and every object has an outline."""
    return model.has_masks and all(sample.objects.masks is not None for sample in samples if len(sample.objects))
