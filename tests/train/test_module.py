"""Schedule, seeds, parameter groups and steps, each against its formula or what the model itself says."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fullfield
from fullfield.data import ImageBatch, Unreadable
from fullfield.errors import TrainingError
from fullfield.tasks import ClassificationTask
from fullfield.train.module import TrainModule, step_seed, warmup_cosine
from fullfield.train.settings import TrainSettings


def tiny_module(**options: Any) -> TrainModule:
    settings = TrainSettings("photos", epochs=4, lr=0.01, **options)
    model = fullfield.create_model("racnn_pico", dims=(8, 16, 24, 32), depths=(1, 2, 1, 1), num_classes=3)
    return TrainModule(ClassificationTask(model, 3), settings, total_steps=40, paths=[f"{i}.jpg" for i in range(9)])


@pytest.mark.parametrize(("total", "warmup"), [(100, 10), (7, 3), (1000, 0), (5, 1)])
def test_schedule_rises_by_equal_steps_then_follows_a_cosine(total: int, warmup: int) -> None:
    factors = [warmup_cosine(step, total=total, warmup=warmup) for step in range(total + 1)]
    rise = factors[: warmup + 1]
    assert rise == pytest.approx([(i + 1) / (warmup + 1) for i in range(warmup + 1)])
    assert factors[warmup] == 1
    assert factors[-1] == pytest.approx(0.01)
    for step in range(warmup, total + 1):
        angle = math.pi * (step - warmup) / (total - warmup)
        assert factors[step] == pytest.approx(0.01 + 0.99 * (math.cos(angle) + 1) / 2)


def test_schedule_is_half_way_down_in_the_middle_and_stays_at_its_floor() -> None:
    assert warmup_cosine(60, total=110, warmup=10) == pytest.approx((1 + 0.01) / 2)
    assert warmup_cosine(60, total=110, warmup=10, floor=0.2) == pytest.approx((1 + 0.2) / 2)
    assert warmup_cosine(500, total=110, warmup=10) == pytest.approx(0.01)


def test_schedule_of_a_single_step_is_finite() -> None:
    assert warmup_cosine(0, total=1, warmup=1) == 0.5
    assert warmup_cosine(0, total=1, warmup=0) == 1


def test_seeds_are_distinct_over_seeds_steps_and_ranks() -> None:
    grid = {
        step_seed(seed, epoch * 10_000_019 + batch, rank)
        for seed in range(4)
        for epoch in range(20)
        for batch in range(100)
        for rank in range(4)
    }
    assert len(grid) == 4 * 20 * 100 * 4
    assert all(0 <= seed < 2**64 for seed in grid)


def test_neighbouring_seeds_share_no_more_bits_than_chance() -> None:
    flipped = [(step_seed(0, step, 0) ^ step_seed(0, step + 1, 0)).bit_count() for step in range(2000)]
    assert sum(flipped) / len(flipped) == pytest.approx(32, abs=0.5)


def test_random_numbers_of_a_step_depend_on_its_place_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny_module()
    batch = ImageBatch(torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64), torch.arange(2), ())
    drawn = []
    for place in (0, 1, 0):
        torch.rand(7)
        module.on_train_batch_start(batch, place)
        drawn.append(torch.rand(4))
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


def groups_by_parameter(module: TrainModule) -> dict[str, dict[str, Any]]:
    optimizer = module.configure_optimizers()["optimizer"]
    names = {parameter: name for name, parameter in module.task.model.named_parameters()}
    found = {names[parameter]: group for group in optimizer.param_groups for parameter in group["params"]}
    assert found.keys() == set(names.values())
    return found


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_biases_norms_and_scales_have_no_weight_decay(layer_decay: float | None) -> None:
    module = tiny_module(weight_decay=0.3, layer_decay=layer_decay)
    norms = {
        f"{where}.{name}"
        for where, part in module.task.model.named_modules()
        if isinstance(part, nn.BatchNorm2d | nn.LayerNorm)
        for name, _ in part.named_parameters()
    }
    decayed = set()
    for name, group in groups_by_parameter(module).items():
        if name in norms or name.endswith(("bias", "scale")):
            assert group["weight_decay"] == 0, name
        else:
            assert group["weight_decay"] == 0.3, name
            decayed.add(name)
    assert norms
    assert any("conv" in name for name in decayed)
    assert "head.fc.weight" in decayed


def test_without_layer_decay_all_learn_at_the_same_rate() -> None:
    groups = groups_by_parameter(tiny_module())
    assert {group["initial_lr"] for group in groups.values()} == {0.01}


def test_layer_decay_lowers_the_rate_from_the_head_to_the_stem() -> None:
    rates: dict[str, set[float]] = defaultdict(set)
    for name, group in groups_by_parameter(tiny_module(layer_decay=0.5)).items():
        part = name.split(".")[0] if not name.startswith("stages") else ".".join(name.split(".")[:2])
        rates[part].add(group["initial_lr"])
    order = ["stem", "stages.0", "stages.1", "stages.2", "stages.3", "head"]
    assert set(order) == rates.keys()
    for earlier, later in pairwise(order):
        assert max(rates[earlier]) <= min(rates[later]), (earlier, later)
    assert max(rates["stem"]) < min(rates["stages.3"])
    assert max(rates["head"]) == 0.01
    for rate in set().union(*rates.values()):
        assert math.log(rate / 0.01, 0.5) == pytest.approx(round(math.log(rate / 0.01, 0.5)))


def test_rates_follow_the_schedule_step_by_step() -> None:
    module = tiny_module(warmup_epochs=1.0)
    configured = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    assert configured["lr_scheduler"]["interval"] == "step"
    seen = []
    for _ in range(40):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    # 40 steps in 4 epochs: the first ten rise
    assert seen[:10] == pytest.approx([0.01 * i / 11 for i in range(1, 11)])
    assert seen[10] == pytest.approx(0.01)
    assert seen[10:] == sorted(seen[10:], reverse=True)


class Says(nn.Module):
    """Logits are one learned number times `value`."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * torch.full((len(images), 3), self.value)


def batch(count: int, unreadable: tuple[Unreadable, ...] = ()) -> ImageBatch:
    images = torch.zeros(count, 3, 8, 8) if count else torch.empty(0, 0, 0, 0)
    return ImageBatch(images, torch.zeros(count, dtype=torch.int64), torch.arange(count), unreadable)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite_stops_and_says_where(value: float) -> None:
    module = TrainModule(
        ClassificationTask(Says(value), 3), TrainSettings("photos", epochs=1), 10, [f"{i}.jpg" for i in range(9)]
    )
    with pytest.raises(TrainingError, match=r"nan in epoch 1, step 5 of it .*images 0\.jpg, 1\.jpg.*lower --lr"):
        module.training_step(batch(2), 4)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_batch_without_a_readable_image_is_skipped() -> None:
    module = TrainModule(ClassificationTask(Says(1.0), 3), TrainSettings("photos", epochs=1), 10, [])
    assert module.training_step(batch(0, (Unreadable("a.jpg", "is empty"),)), 0) is None
    module.on_validation_epoch_start()
    module.validation_step(batch(0), 0)
    assert module.validation_result().images == 0


def test_single_image_that_batchnorm_can_not_normalise_is_explained() -> None:
    one = ImageBatch(torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.int64), torch.zeros(1), ())
    with pytest.raises(TrainingError, match=r"one image of 32 pixels.*--batch-size of 2 or more"):
        tiny_module().training_step(one, 0)


def test_other_errors_of_the_model_are_not_taken_for_that() -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise ValueError("a bug")

    module = TrainModule(ClassificationTask(Broken(), 3), TrainSettings("photos", epochs=1), 10, [])
    with pytest.raises(ValueError, match="a bug"):
        module.training_step(batch(2), 0)
