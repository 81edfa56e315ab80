"""The figures of classification against counts made with plain numpy."""

from __future__ import annotations

import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from fullfield.errors import MissingExtraError
from fullfield.tasks import ClassificationMetrics, ClassificationResult


def counted(logits: np.ndarray, labels: np.ndarray, sizes: list[int]) -> ClassificationResult:
    metrics = ClassificationMetrics(logits.shape[1])
    bounds = np.cumsum([0, *sizes])
    assert bounds[-1] == len(labels)
    for start, stop in pairwise(bounds):
        metrics.update(torch.from_numpy(logits[start:stop]), torch.from_numpy(labels[start:stop]))
    return metrics.compute()


@pytest.mark.parametrize("classes", [2, 3, 5, 6, 9])
@pytest.mark.parametrize("sizes", [[40], [1, 7, 32], [8, 0, 31, 1]], ids=str)
def test_figures_equal_plain_counts_whatever_the_batches(classes: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(classes)
    logits = rng.normal(size=(40, classes)).astype(np.float32) * 3
    labels = rng.integers(0, classes, 40)
    result = counted(logits, labels, sizes)

    guesses = logits.argmax(1)
    confusion = np.zeros((classes, classes), int)
    for label, guess in zip(labels, guesses, strict=True):
        confusion[label, guess] += 1
    wide = logits.astype(np.float64)
    losses = np.log(np.exp(wide).sum(1)) - wide[np.arange(40), labels]
    assert result.images == 40
    assert result.top1 == pytest.approx((guesses == labels).mean())
    assert result.loss == pytest.approx(losses.mean(), rel=1e-5)
    assert result.majority == pytest.approx(np.bincount(labels).max() / 40)
    np.testing.assert_array_equal(result.confusion, confusion)
    for index in range(classes):
        assert result.recall[index] == pytest.approx((guesses[labels == index] == index).mean())
    assert result.mean_recall == pytest.approx(np.mean([result.recall[i] for i in range(classes)]))
    if classes <= 5:
        assert result.top5 is None
        assert "top5" not in result.scalars()
    else:
        ranks = (wide > wide[np.arange(40), labels][:, None]).sum(1)
        assert result.top5 == pytest.approx((ranks < 5).mean())


def test_recall_of_a_class_without_images_is_nan_and_does_not_count() -> None:
    labels = np.array([0, 0, 2])
    result = counted(np.eye(3, dtype=np.float32)[[0, 1, 2]], labels, [3])
    assert np.isnan(result.recall[1])
    assert result.recall[[0, 2]].tolist() == [0.5, 1.0]
    assert result.mean_recall == 0.75
    assert result.majority == pytest.approx(2 / 3)


def test_loss_of_half_precision_logits_is_computed_in_float32() -> None:
    logits = torch.tensor([[60.0, 0.0], [0.0, 60.0]], dtype=torch.bfloat16)
    metrics = ClassificationMetrics(2)
    metrics.update(logits, torch.tensor([0, 0]))
    assert metrics.compute().loss == pytest.approx(30.0, abs=1e-4)


def test_nan_logits_give_a_nan_loss_instead_of_being_left_out() -> None:
    result = counted(np.array([[1, 0], [np.nan, np.nan]], np.float32), np.array([0, 1]), [1, 1])
    assert np.isnan(result.loss)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_no_image_at_all_gives_no_image_and_no_loss() -> None:
    metrics = ClassificationMetrics(3)
    metrics.update(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    result = metrics.compute()
    assert result.images == 0
    assert np.isnan(result.loss)
    assert result.top1 == 0


def test_reset_forgets_what_was_counted() -> None:
    metrics = ClassificationMetrics(6)
    metrics.update(torch.randn(5, 6), torch.arange(5))
    metrics.reset()
    metrics.update(torch.eye(6), torch.arange(6))
    result = metrics.compute()
    assert (result.images, result.top1, result.top5) == (6, 1.0, 1.0)


def test_missing_torchmetrics_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(MissingExtraError, match=r"fullfield\[train\]"):
        ClassificationMetrics(3)
