"""The classification loss against cross-entropy written out, and mixing against what the pixels themselves show.

Images here are one-hot in their channels: image of class k has ones in channel k. Whatever mixes them leaves the
shares of the classes in the pixels, so the soft target can be read off the picture.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fullfield.data import ImageBatch
from fullfield.tasks import ClassificationTask

CLASSES = 4


class Means(nn.Module):
    """Logits are three times the channels' means; keeps what it was given."""

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        return 3 * images.mean((2, 3))


def batch(labels: list[int]) -> ImageBatch:
    targets = torch.tensor(labels)
    images = torch.eye(CLASSES)[targets][:, :, None, None].expand(-1, -1, 8, 8).contiguous()
    return ImageBatch(images, targets, torch.arange(len(labels)), ())


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    """Mean over images of -sum_k t_k log softmax_k."""
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return float(-(targets * np.log(shares)).sum(1).mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_loss_is_cross_entropy_with_the_smoothed_target_written_out(smoothing: float) -> None:
    logits = np.random.default_rng(0).normal(size=(5, CLASSES))
    labels = [0, 3, 1, 1, 2]

    class Fixed(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.from_numpy(logits)

    task = ClassificationTask(Fixed(), CLASSES, label_smoothing=smoothing)
    targets = (1 - smoothing) * np.eye(CLASSES)[labels] + smoothing / CLASSES
    assert float(task.loss(batch(labels))) == pytest.approx(cross_entropy(logits, targets), rel=1e-6)


@pytest.mark.parametrize("mix", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}], ids=str)
def test_mixed_targets_are_the_shares_of_the_classes_in_the_pixels(mix: dict[str, float]) -> None:
    model = Means()
    task = ClassificationTask(model, CLASSES, **mix)
    for _ in range(10):
        loss = float(task.loss(batch([0, 1, 2, 3, 1, 0])))
        targets = model.seen.mean((2, 3)).double().numpy()
        np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
        assert loss == pytest.approx(cross_entropy(3 * targets, targets), rel=1e-4)


def test_mixup_and_cutmix_together_take_turns() -> None:
    model = Means()
    task = ClassificationTask(model, CLASSES, mixup=0.8, cutmix=1.0)
    kinds = set()
    for _ in range(40):
        task.loss(batch([0, 1, 2, 3]))
        blended = bool(((model.seen > 0) & (model.seen < 1)).any())
        cut = bool((model.seen.flatten(2).std(2) > 0).any())
        kinds.add("mixup" if blended else "cutmix" if cut else "nothing")
    assert {"mixup", "cutmix"} <= kinds


@pytest.mark.parametrize("mix", [{}, {"mixup": 0.8, "cutmix": 1.0}], ids=["off", "on"])
def test_a_single_image_is_never_mixed(mix: dict[str, float]) -> None:
    model = Means()
    task = ClassificationTask(model, CLASSES, **mix)
    one = batch([2])
    for _ in range(5):
        task.loss(one)
        assert torch.equal(model.seen, one.images)


def test_without_mixing_the_model_sees_the_images_as_they_are() -> None:
    model = Means()
    images = batch([0, 1, 2])
    ClassificationTask(model, CLASSES).loss(images)
    assert model.seen is images.images


def test_loss_of_half_precision_logits_is_float32() -> None:
    class Half(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3)).half() * 20

    assert ClassificationTask(Half(), CLASSES).loss(batch([0, 1])).dtype == torch.float32
