"""The figures against an independent loop over pixels, over processes too, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fullfield.errors import DataError
from fullfield.tasks.segmentation.mean_iou import SegmentationMetrics, SegmentationResult

IGNORE = 255
Pair = tuple[torch.Tensor, torch.Tensor]


def maps(images: int = 4, classes: int = 5, seed: int = 0) -> list[Pair]:
    """Truths with ignored pixels and without the last class, and predictions without the last two but one pixel."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(images):
        shape = tuple(rng.integers(3, 9, 2))
        true = rng.integers(0, classes - 1, shape)
        true[rng.random(shape) < 0.2] = IGNORE
        predicted = np.where(
            rng.random(shape) < 0.5, np.minimum(true, classes - 2), rng.integers(0, classes - 2, shape)
        )
        pairs.append((torch.from_numpy(true), torch.from_numpy(predicted)))
    return pairs


def counted(pairs: list[Pair], classes: int = 5) -> SegmentationResult:
    metrics = SegmentationMetrics(classes, IGNORE)
    for true, predicted in pairs:
        metrics.update(true, predicted)
    return metrics.compute()


def loop_figures(pairs: list[Pair], classes: int = 5) -> tuple[float, float, float, list[float]]:
    """mIoU, mean accuracy, pixel accuracy and the IoUs, from sets of pixels and nothing else."""
    true_of: list[set[tuple[int, int]]] = [set() for _ in range(classes)]
    predicted_of: list[set[tuple[int, int]]] = [set() for _ in range(classes)]
    for image, (true, predicted) in enumerate(pairs):
        for place, (a, b) in enumerate(zip(true.flatten().tolist(), predicted.flatten().tolist(), strict=True)):
            if a != IGNORE:
                true_of[a].add((image, place))
                predicted_of[b].add((image, place))
    ious, accuracies, right = [], [], 0
    for a, b in zip(true_of, predicted_of, strict=True):
        ious.append(len(a & b) / len(a | b) if a | b else math.nan)
        accuracies.append(len(a & b) / len(a) if a else math.nan)
        right += len(a & b)
    pixels = sum(len(a) for a in true_of)
    return float(np.nanmean(ious)), float(np.nanmean(accuracies)), right / pixels, ious


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_a_loop_over_pixels(seed: int) -> None:
    pairs = maps(seed=seed)
    result = counted(pairs)
    miou, macc, accuracy, ious = loop_figures(pairs)
    assert result.miou == result.score == pytest.approx(miou, rel=1e-12)
    assert result.macc == pytest.approx(macc, rel=1e-12)
    assert result.pixel_accuracy == pytest.approx(accuracy, rel=1e-12)
    assert result.iou.tolist() == pytest.approx(ious, nan_ok=True)
    assert math.isnan(result.iou[4])
    assert result.images == 4
    assert result.loss is None


def test_rows_of_the_confusion_are_true_classes() -> None:
    result = counted([(torch.tensor([[0, 0, 1, IGNORE]]), torch.tensor([[1, 0, 1, 1]]))], classes=2)
    assert result.confusion.tolist() == [[1, 1], [0, 1]]
    assert result.confusion.dtype == np.int64
    assert result.acc.tolist() == [0.5, 1.0]


def test_a_class_that_is_predicted_and_never_true_has_iou_0_and_no_accuracy() -> None:
    result = counted([(torch.tensor([[0, 0, 0]]), torch.tensor([[0, 0, 2]]))], classes=3)
    assert result.iou.tolist() == pytest.approx([2 / 3, math.nan, 0], nan_ok=True)
    assert result.acc.tolist() == pytest.approx([2 / 3, math.nan, math.nan], nan_ok=True)


def test_the_majoritys_miou_is_what_that_constant_answer_reaches() -> None:
    pairs = maps()
    labels, counts = torch.cat([true[true != IGNORE] for true, _ in pairs]).unique(return_counts=True)
    most = int(labels[counts.argmax()])
    constant = counted([(true, torch.full_like(true, most)) for true, _ in pairs])
    assert counted(pairs).majority_miou == pytest.approx(constant.miou)


def test_the_loss_is_the_mean_over_labelled_pixels_of_all_images() -> None:
    metrics = SegmentationMetrics(2, IGNORE)
    metrics.update(torch.tensor([[0, IGNORE]]), torch.tensor([[0, 0]]), cross_entropy=torch.tensor(3.0))
    metrics.update(torch.tensor([[1, 1, 0]]), torch.tensor([[0, 0, 0]]), cross_entropy=torch.tensor(1.0))
    assert metrics.compute().loss == 1.0
    assert metrics.compute().scalars()["loss"] == 1.0


def test_without_labelled_pixels_figures_are_nan_and_nothing_fails() -> None:
    for result in (counted([]), counted([(torch.full((2, 2), IGNORE), torch.zeros(2, 2, dtype=torch.int64))])):
        scalars = result.scalars()
        assert set(scalars) == {"images", "miou", "macc", "pixel_accuracy", "majority_miou"}
        assert all(math.isnan(value) for name, value in scalars.items() if name != "images")


def test_reset_starts_over_and_leaves_earlier_results_alone() -> None:
    metrics = SegmentationMetrics(5, IGNORE)
    pairs = maps()
    metrics.update(*pairs[0], cross_entropy=torch.tensor(1.0))
    first = metrics.compute()
    pixels = first.confusion.sum()
    metrics.reset()
    assert metrics.compute().images == 0
    assert metrics.compute().loss is None
    metrics.update(*pairs[1])
    assert first.confusion.sum() == pixels
    assert metrics.compute().miou == counted(pairs[1:2]).miou


def test_counts_beyond_32_bits_are_exact() -> None:
    metrics = SegmentationMetrics(2, IGNORE)
    metrics.confusion += torch.tensor([[2**40, 0], [0, 0]])
    metrics.update(torch.tensor([[0, 1]]), torch.tensor([[0, 0]]))
    assert metrics.compute().confusion.tolist() == [[2**40 + 1, 0], [1, 0]]


@pytest.mark.parametrize(
    ("true", "predicted", "message"),
    [
        ([[0, 5]], [[0, 0]], "label map has labels from 0 to 5; classes are 0 to 4, and 255 is ignored"),
        ([[0, -1]], [[0, 0]], "label map has labels from -1 to 0"),
        ([[0, 0]], [[0, 7]], "prediction has labels from 0 to 7"),
        ([[0, 0]], [[0]], "2 x 1 pixels does not fit a prediction of 1 x 1"),
    ],
)
def test_labels_outside_the_classes_and_other_sizes_are_refused(
    true: list[list[int]], predicted: list[list[int]], message: str
) -> None:
    metrics = SegmentationMetrics(5, IGNORE)
    with pytest.raises(DataError, match=message):
        metrics.update(torch.tensor(true), torch.tensor(predicted))
    assert metrics.compute().images == 0


def _count_a_share(rank: int, world: int, store: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    metrics, alone = SegmentationMetrics(5, IGNORE, synced=True), SegmentationMetrics(5, IGNORE)
    for true, predicted in maps()[rank::world] if rank < 2 else []:
        metrics.update(true, predicted, cross_entropy=torch.tensor(2.0))
        alone.update(true, predicted)
    result, again = metrics.compute(), metrics.compute()
    assert (result.confusion == again.confusion).all()  # asking twice does not count twice
    torch.save((result.confusion, result.images, result.loss, alone.compute().images), f"{out}/{rank}.pt")
    dist.destroy_process_group()


def test_processes_together_say_what_one_says_and_one_may_have_no_images(tmp_path: Path) -> None:
    mp.start_processes(_count_a_share, (3, str(tmp_path / "store"), str(tmp_path)), nprocs=3, start_method="fork")
    pairs = [pair for rank in range(2) for pair in maps()[rank::3]]
    expected = counted(pairs)
    pixels = int(expected.confusion.sum())
    for rank, own in enumerate((2, 1, 0)):
        confusion, images, loss, alone = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert (confusion == expected.confusion).all()
        assert images == 3
        assert loss == pytest.approx(3 * 2.0 / pixels)
        assert alone == own
