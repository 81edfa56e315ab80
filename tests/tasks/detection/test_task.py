"""The detection task: the sum of a detector's losses, and which samples a validation batch is of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fullfield.data.detection.dataset import DetectionBatch
from fullfield.data.detection.objects import DetectionSample
from fullfield.errors import ConfigError
from fullfield.tasks.detection.detections import Detections
from fullfield.tasks.detection.task import DetectionTask, masks_evaluated
from tests.tasks.detection.coco_reference import H, W, ellipse, found_of, sample_of

pytest.importorskip("faster_coco_eval", reason="needs fullfield[detect]")

CLASSES = ("cell", "rod")


class GivenDetector(nn.Module):
    """Gives the losses it was given, and finds in an image what its mean value is a key of."""

    def __init__(self, losses: dict[str, Tensor] | None = None, found: dict[float, Detections] | None = None) -> None:
        super().__init__()
        self.num_classes = len(CLASSES)
        self.has_masks = False
        self.losses = losses or {}
        self.found = found or {}
        self.seen: list[Any] = []

    def forward(self, images: Any, targets: Any = None) -> Any:
        self.seen.append((images, targets))
        if self.training:
            return self.losses
        return [self.found[round(float(image.mean()), 3)] for image in images]


def batch_of(*values: float, indices: list[int]) -> DetectionBatch:
    images = tuple(torch.full((3, H, W), value) for value in values)
    return DetectionBatch(images, tuple({} for _ in images), torch.tensor(indices), ())


def task_of(detector: Any, validation: list[DetectionSample] | None = None) -> DetectionTask:
    return DetectionTask(detector, CLASSES, validation=validation or [])


def test_loss_is_the_sum_of_the_detector_s() -> None:
    detector = GivenDetector({"classify": torch.tensor(0.5), "box": torch.tensor(1.25), "rpn": torch.tensor(2.0)})
    batch = batch_of(0.1, indices=[0])
    assert task_of(detector).loss(batch).item() == 3.75
    assert detector.seen == [(batch.images, batch.targets)]


def test_loss_sends_a_gradient_to_every_part() -> None:
    parts = {name: torch.tensor(1.0, requires_grad=True) for name in ("classify", "box")}
    task_of(GivenDetector({name: 2 * part for name, part in parts.items()})).loss(batch_of(0.1, indices=[0])).backward()
    assert [part.grad.item() for part in parts.values() if part.grad is not None] == [2.0, 2.0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_loss_is_added_up_in_float32_at_least(given: torch.dtype, expected: torch.dtype) -> None:
    losses = {"large": torch.tensor(256.0, dtype=given), "small": torch.tensor(0.5, dtype=given)}
    loss = task_of(GivenDetector(losses)).loss(batch_of(0.1, indices=[0]))
    assert loss.dtype == expected
    assert loss.item() == 256.5  # bfloat16 has no such number


def test_validation_counts_the_samples_that_the_indices_name() -> None:
    boxes = [[10, 10, 40, 40]]
    validation = [sample_of(7, boxes, [0]), sample_of(8, [[60, 60, 90, 90]], [1]), sample_of(9, [], [])]
    right = {0.1: found_of(boxes, [0.9], [0]), 0.2: found_of([[60, 60, 90, 90]], [0.8], [1]), 0.3: found_of([], [], [])}
    task = task_of(GivenDetector(found=right), validation).eval()
    metrics = task.metrics()
    task.validate(batch_of(0.3, 0.2, indices=[2, 1]), metrics)
    task.validate(batch_of(0.1, indices=[0]), metrics)
    assert metrics.compute().images == 3
    assert metrics.compute().score == pytest.approx(1.0)
    exchanged = task.metrics()
    task.validate(batch_of(0.1, 0.2, indices=[1, 0]), exchanged)
    assert exchanged.compute().score == 0.0


def test_masks_are_evaluated_where_the_head_and_the_data_have_them() -> None:
    box = np.array([10, 10, 40, 40])
    outlined, boxed = sample_of(1, [box], [0], masks=[ellipse(box, H, W)]), sample_of(2, [box], [0])
    empty = sample_of(3, [], [])
    detector: Any = GivenDetector()
    assert not masks_evaluated(detector, [outlined])
    detector.has_masks = True
    assert masks_evaluated(detector, [outlined, empty])
    assert not masks_evaluated(detector, [outlined, boxed, empty])
    assert task_of(detector, [outlined]).metrics(synced=True).masks
    assert task_of(detector, [outlined]).metrics(synced=True).synced
    assert not task_of(detector, [boxed]).metrics().masks


def test_detector_of_another_number_of_classes_is_refused() -> None:
    detector: Any = GivenDetector()
    with pytest.raises(ConfigError, match="the detector has 2 classes and 3 are named; build it with num_classes=3"):
        DetectionTask(detector, ("cell", "rod", "platelet"), validation=[])
