"""Cost by stage: the stages together are the whole model, and each holds the modules between two feature layers."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import fullfield
from fullfield.measure.compare_stages import chosen_stages, cost_of_stages, time_stages
from fullfield.measure.cost_report import cost_report
from fullfield.measure.feature_maps import frozen, stage_layers
from fullfield.measure.runners import Setting
from fullfield.models.flops import count_flops
from tests.measure.comparison import TwoStages


def layers_of(model: nn.Module, size: int) -> list[str]:
    with frozen(model):
        return chosen_stages(stage_layers(model, torch.zeros(1, 3, size, size)))


@pytest.mark.parametrize(
    ("name", "size"), [("racnn_pico", 64), ("resnet10t", 64), ("convnext_atto", 64), ("vit_tiny_patch16_224", 224)]
)
def test_stages_together_are_the_whole_model(name: str, size: int) -> None:
    model = fullfield.create_model(name).eval()
    layers = layers_of(model, size)
    report = cost_report(model, image_size=size)
    stages = cost_of_stages(report, layers)
    assert [stage.name for stage in stages] == [f"stage {i}" for i in range(1, len(layers) + 1)] + ["head"]
    assert [stage.layer for stage in stages] == [*layers, ""]
    assert sum(stage.params for stage in stages) == sum(p.numel() for p in model.parameters())
    assert sum(stage.macs for stage in stages) == pytest.approx(report.cost.macs, abs=len(stages))


def test_a_stage_holds_what_lies_between_two_feature_layers() -> None:
    model = TwoStages()
    stages = cost_of_stages(cost_report(model, image_size=32), ["first.1", "second.1"])
    assert [s.params for s in stages] == [3 * 9 * 4 + 4, 4 * 9 * 8 + 8, 8 * 5 + 5]
    assert [s.macs for s in stages] == [16 * 16 * 4 * 27, 8 * 8 * 8 * 36, 40]


def test_a_resnet_s_stem_is_in_its_first_stage() -> None:
    """Against the same nets cut off after each stage, counted by themselves."""
    model = timm.create_model("resnet10t").eval()
    layers = layers_of(model, 64)
    assert layers == ["layer1", "layer2", "layer3", "layer4"]
    found = [stage.macs for stage in cost_of_stages(cost_report(model, image_size=64), layers)]
    cut = [
        count_flops(timm.create_model("resnet10t", features_only=True, out_indices=(i,)).eval(), (3, 64, 64)) // 2
        for i in (1, 2, 3, 4)
    ]
    assert found[:4] == [cut[0], cut[1] - cut[0], cut[2] - cut[1], cut[3] - cut[2]]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (["a"], ["a"]),
        (["a", "b", "c", "d"], ["a", "b", "c", "d"]),
        (["stem", "a", "b", "c", "d"], ["a", "b", "c", "d"]),
        ([f"blocks.{i}" for i in range(12)], ["blocks.2", "blocks.5", "blocks.8", "blocks.11"]),
        ([str(i) for i in range(6)], ["0", "2", "3", "5"]),
    ],
)
def test_at_most_four_stages_are_shown_the_last_among_them(layers: list[str], expected: list[str]) -> None:
    assert chosen_stages(layers) == expected


def test_time_goes_to_the_stage_in_which_it_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("fullfield.measure.breakdown.time.perf_counter", lambda: clock[-1])

    class Waits(nn.Conv2d):
        seconds = 0.0

        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Conv2d's name
            clock.append(clock[-1] + self.seconds)
            return super().forward(input)

    model = TwoStages()
    for stage, seconds in ((model.first, 0.25), (model.second, 0.5)):
        old = stage[0]
        stage[0] = Waits(old.in_channels, old.out_channels, 3, 2, 1)
        stage[0].seconds = seconds
    stages = cost_of_stages(cost_report(TwoStages(), image_size=32), ["first.1", "second.1"])
    timed = time_stages(model, stages, Setting(image_size=(32, 32)), calls=2)
    assert [stage.ms for stage in timed] == [250, 500, 0]
    assert all(stage.ms is None for stage in stages)
