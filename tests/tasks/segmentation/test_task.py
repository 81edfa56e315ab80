"""The task: its loss is the criterion's with the auxiliary head's, its figures are those of the original pixels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fullfield.data.dense import DensePreprocess
from fullfield.data.segmentation.dataset import SegmentationBatch
from fullfield.errors import ConfigError
from fullfield.tasks.segmentation.losses import SegmentationLoss
from fullfield.tasks.segmentation.segmenter import Segmenter
from fullfield.tasks.segmentation.task import SegmentationTask
from tests.tasks.segmentation.fakes import CLASSES, Knows

pytest.importorskip("segmentation_models_pytorch", reason="needs the extra fullfield[segment]")


def segmenter(head: str = "upernet", **more: Any) -> Segmenter:
    arguments = {"channels": 16, "auxiliary_channels": 8, "dropout": 0.0} | more
    torch.manual_seed(0)
    tiny: dict[str, Any] = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}
    return Segmenter("racnn_pico", head, 3, preprocess=DensePreprocess(), head_arguments=arguments, **tiny)


def batch(images: int = 2, side: int = 64) -> SegmentationBatch:
    """Images in which the brightest channel is the label, with ignored pixels."""
    generator = torch.Generator().manual_seed(images)
    coarse = torch.randint(0, 3, (images, side // 16, side // 16), generator=generator)
    masks = coarse.repeat_interleave(16, 1).repeat_interleave(16, 2)
    pictures = F.one_hot(masks, 3).movedim(-1, 1).float() * 0.8 + 0.2 * torch.rand(images, 3, side, side)
    masks[:, :4] = 255
    return SegmentationBatch(pictures, masks, torch.arange(images), ())


def test_the_loss_is_the_criterions_with_the_auxiliary_heads_by_its_weight() -> None:
    task = SegmentationTask(segmenter(auxiliary=0.25), CLASSES, 255, "cross_entropy+dice:0.5").eval()
    given = batch()
    logits, auxiliary = task.model.forward_auxiliary(given.images)
    assert auxiliary is not None
    criterion = SegmentationLoss("cross_entropy+dice:0.5", 255)
    expected = criterion(logits, given.masks) + 0.25 * criterion(auxiliary, given.masks)
    torch.testing.assert_close(task.loss(given), expected)
    torch.testing.assert_close(task(given.images), logits)


def test_a_few_steps_learn_a_batch() -> None:
    task = SegmentationTask(segmenter(), CLASSES, 255).train()
    optimiser = torch.optim.AdamW(task.parameters(), lr=5e-3)
    given, losses = batch(4), []
    for _ in range(12):
        optimiser.zero_grad()
        loss = task.loss(given)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    metrics = task.eval().metrics()
    task.validate(given, metrics)
    assert metrics.compute().miou > 2 * metrics.compute().majority_miou


def test_figures_are_of_the_labels_own_pixels_whether_the_image_comes_resized_or_not() -> None:
    task = SegmentationTask(segmenter("fpn", channels=128), CLASSES, 255).eval()
    model: Any = Knows(preprocess=DensePreprocess(short_side=32))
    model.num_classes = 3
    task.model = model
    given = batch(1)
    resized = F.interpolate(given.images, size=(32, 32), mode="bilinear", antialias=True)
    results = []
    for images in (given.images, resized):
        metrics = task.metrics()
        task.validate(given._replace(images=images), metrics)
        results.append(metrics.compute())
    assert (results[0].confusion == results[1].confusion).all()
    assert results[0].confusion.sum() == (given.masks != 255).sum()
    assert results[0].pixel_accuracy > 0.9


def test_the_validation_loss_is_the_mean_cross_entropy_of_a_labelled_pixel() -> None:
    task = SegmentationTask(segmenter(), CLASSES, 255).eval()
    given, metrics = batch(3), task.metrics()
    task.validate(given, metrics)
    with torch.no_grad():
        expected = F.cross_entropy(task(given.images), given.masks, ignore_index=255)
    assert metrics.compute().loss == pytest.approx(float(expected), rel=1e-5)
    assert metrics.compute().images == 3


def test_kind_and_score_are_those_of_segmentation() -> None:
    task = SegmentationTask(segmenter(), CLASSES, 255)
    assert (task.kind, task.score_name) == ("segment", "miou")
    assert task.metrics(synced=True).synced


def test_numbers_of_classes_that_differ_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 classes, and the model has 3"):
        SegmentationTask(segmenter(), CLASSES[:2], 255)
    with pytest.raises(ConfigError, match="2 class weights and 3 classes"):
        SegmentationTask(segmenter(), CLASSES, 255, class_weights=(1, 2))
    with pytest.raises(ConfigError, match="did you mean 'dice'"):
        SegmentationTask(segmenter(), CLASSES, 255, "dise")
