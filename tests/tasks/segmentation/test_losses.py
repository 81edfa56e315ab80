"""The losses against slow loops in float64, their gradients against differences, and batches without labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fullfield.errors import ConfigError
from fullfield.tasks.segmentation.losses import (
    LOSSES,
    SegmentationLoss,
    cross_entropy,
    dice,
    focal,
    lovasz_softmax,
    read_loss,
)

IGNORE = 255


def case(seed: int = 0, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Logits (2, K, 5, 6) in float64 and labels in which one class is absent and a third is ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, 5, 6, generator=generator, dtype=torch.float64) * 2
    labels = torch.randint(0, classes - 1, (2, 5, 6), generator=generator)
    labels[torch.rand(2, 5, 6, generator=generator) < 0.33] = IGNORE
    return logits, labels


def pixels(logits: Tensor, labels: Tensor) -> list[tuple[NDArray[np.float64], int]]:
    """The shares and the label of each pixel that counts, by loops."""
    found = []
    for b, y, x in np.ndindex(*labels.shape):
        label = int(labels[b, y, x])
        if label != IGNORE:
            powers = np.exp(logits[b, :, y, x].numpy())
            found.append((powers / powers.sum(), label))
    return found


def loop_cross_entropy(logits: Tensor, labels: Tensor, weights: list[float] | None = None) -> float:
    total = count = 0.0
    for shares, label in pixels(logits, labels):
        weight = 1.0 if weights is None else weights[label]
        total -= weight * math.log(shares[label])
        count += weight
    return total / count


def loop_focal(logits: Tensor, labels: Tensor) -> float:
    values = [-((1 - shares[label]) ** 2) * math.log(shares[label]) for shares, label in pixels(logits, labels)]
    return sum(values) / len(values)


def loop_dice(logits: Tensor, labels: Tensor) -> float:
    found, losses = pixels(logits, labels), []
    for c in {label for _, label in found}:
        both = sum(shares[c] for shares, label in found if label == c)
        sizes = sum(shares[c] for shares, _ in found) + sum(label == c for _, label in found)
        losses.append(1 - 2 * both / sizes)
    return float(np.mean(losses))


def loop_lovasz(logits: Tensor, labels: Tensor) -> float:
    """The Lovász extension from its definition: a sum over nested sets of the largest errors (Berman et al., eq. 5)."""
    found, losses = pixels(logits, labels), []
    for c in {label for _, label in found}:
        errors = [(1 - shares[c] if label == c else shares[c], i) for i, (shares, label) in enumerate(found)]
        order = [i for _, i in sorted(errors, reverse=True)]
        truth = {i for i, (_, label) in enumerate(found) if label == c}

        def jaccard_loss(wrong: set[int], truth: set[int] = truth) -> float:
            return len(wrong) / len(truth | wrong)

        total, wrong = 0.0, set[int]()
        values = {i: error for error, i in errors}
        for i in order:
            total += values[i] * (jaccard_loss(wrong | {i}) - jaccard_loss(wrong))
            wrong = wrong | {i}
        losses.append(total)
    return float(np.mean(losses))


LOOPS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "cross_entropy": loop_cross_entropy,
    "focal": loop_focal,
    "dice": loop_dice,
    "lovasz": loop_lovasz,
}


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("seed", [0, 1])
def test_a_loss_is_what_a_loop_in_float64_says(name: str, seed: int) -> None:
    logits, labels = case(seed)
    assert float(LOSSES[name](logits, labels, IGNORE)) == pytest.approx(LOOPS[name](logits, labels), rel=1e-10)


@pytest.mark.parametrize("name", list(LOSSES))
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    logits, labels = case(2)
    logits, labels = logits[:1, :, :3, :3].clone().requires_grad_(), labels[:1, :3, :3]
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, labels, IGNORE), (logits,))


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("ignore", [IGNORE, -1])
def test_a_batch_wholly_ignored_gives_0_with_gradient_0(name: str, ignore: int) -> None:
    logits = torch.randn(2, 4, 3, 3, requires_grad=True)
    loss = LOSSES[name](logits, torch.full((2, 3, 3), ignore), ignore)
    assert loss.shape == ()
    assert loss.item() == 0
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.eq(0).all()


@pytest.mark.parametrize("name", list(LOSSES))
def test_ignored_pixels_get_no_gradient_and_logits_there_do_not_matter(name: str) -> None:
    logits, labels = case()
    logits.requires_grad_()
    loss = LOSSES[name](logits, labels, IGNORE)
    loss.backward()
    assert logits.grad is not None
    ignored = (labels == IGNORE)[:, None].expand_as(logits)
    assert logits.grad[ignored].eq(0).all()
    other = logits.detach().where(~ignored, 9.0)
    assert float(LOSSES[name](other, labels, IGNORE)) == pytest.approx(loss.item())


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_perfect_answer_costs_nothing_and_a_wrong_one_more_than_a_guess(name: str) -> None:
    labels = torch.randint(0, 3, (1, 8, 8), generator=torch.Generator().manual_seed(0))
    right = F.one_hot(labels, 3).movedim(-1, 1).float() * 40
    wrong = F.one_hot((labels + 1) % 3, 3).movedim(-1, 1).float() * 40
    values = [float(LOSSES[name](logits, labels, IGNORE)) for logits in (right, torch.zeros_like(right), wrong)]
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert values[0] < values[1] < values[2]


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_summed_in_float32(name: str, dtype: torch.dtype) -> None:
    labels = torch.zeros(1, 300, 300, dtype=torch.int64)  # 90,000 is more than float16 can count
    loss = LOSSES[name](torch.zeros(1, 2, 300, 300, dtype=dtype), labels, IGNORE)
    assert loss.dtype == torch.float32
    assert loss.isfinite()


def test_cross_entropy_and_dice_agree_with_the_libraries_where_these_are_well_behaved() -> None:
    logits, labels = case()
    torch.testing.assert_close(
        cross_entropy(logits, labels, IGNORE), F.cross_entropy(logits, labels, ignore_index=IGNORE)
    )
    library = pytest.importorskip("segmentation_models_pytorch").losses
    labels = torch.arange(60).view(2, 5, 6) % 4  # every class occurs, nothing is ignored
    torch.testing.assert_close(dice(logits, labels, IGNORE), library.DiceLoss("multiclass")(logits, labels))
    theirs = library.LovaszLoss("multiclass")(logits.float(), labels)
    torch.testing.assert_close(lovasz_softmax(logits.float(), labels, IGNORE), theirs)


def test_class_weights_weigh_the_mean() -> None:
    logits, labels = case()
    weights = [0.5, 2.0, 0.0, 1.0]
    value = cross_entropy(logits, labels, IGNORE, torch.tensor(weights))
    assert float(value) == pytest.approx(loop_cross_entropy(logits, labels, weights), rel=1e-10)
    only = torch.full_like(labels, 2)  # whose weight is 0
    assert float(cross_entropy(logits, only, IGNORE, torch.tensor(weights))) == 0


def test_focal_with_gamma_0_is_cross_entropy() -> None:
    logits, labels = case()
    torch.testing.assert_close(focal(logits, labels, IGNORE, gamma=0), cross_entropy(logits, labels, IGNORE))


def test_a_sum_of_losses_is_read_from_a_text_and_weighted() -> None:
    assert read_loss("cross_entropy") == {"cross_entropy": 1.0}
    assert read_loss(" cross_entropy:1 + lovasz: 0.5") == {"cross_entropy": 1.0, "lovasz": 0.5}
    logits, labels = case()
    value = SegmentationLoss("dice:2+focal:0.25", IGNORE)(logits, labels)
    torch.testing.assert_close(value, 2 * dice(logits, labels, IGNORE) + 0.25 * focal(logits, labels, IGNORE))
    weighted = SegmentationLoss("cross_entropy", IGNORE, [1, 2, 3, 4])(logits, labels)
    torch.testing.assert_close(weighted, cross_entropy(logits, labels, IGNORE, torch.tensor([1.0, 2, 3, 4])))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cross_entrpy", "did you mean 'cross_entropy'"),
        ("", "no segmentation loss ''"),
        ("dice+", "no segmentation loss ''"),
        ("dice+dice", "comes twice"),
        ("dice:", "weight ''"),
        ("dice:x", "weight 'x'"),
        ("dice:0", "weight '0'"),
        ("dice:-1", "weight '-1'"),
        ("dice:nan", "weight 'nan'"),
        ("dice:inf", "weight 'inf'"),
    ],
)
def test_texts_that_are_no_loss_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_loss(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dice", IGNORE, [1, 1, 1, 1]), "class weights weigh the cross-entropy"),
        (("cross_entropy", IGNORE, [0, 0, 0, 0]), "not all 0"),
        (("cross_entropy", IGNORE, [1, -1, 1, 1]), "at least 0"),
        (("cross_entropy", IGNORE, [1, math.nan, 1, 1]), "at least 0"),
        (("cross_entropy", IGNORE, [1, 1]), "2 class weights and 4 classes"),
    ],
)
def test_impossible_class_weights_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SegmentationLoss(*arguments)(*case())
