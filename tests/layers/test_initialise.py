"""Starting weights have the variance that their fan-out asks for, one group counted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fullfield.layers.initialise import initialise_by_fan_out


@pytest.mark.parametrize(
    ("layer", "variance"),
    [
        (nn.Conv2d(64, 256, 1), 2 / 256),
        (nn.Conv2d(16, 64, 3), 2 / (9 * 64)),
        (nn.Conv2d(2048, 2048, 5, groups=2048), 2 / 25),
        (nn.Conv2d(512, 1024, 3, groups=256), 2 / (9 * 4)),
        (nn.Conv2d(2048, 2048, (7, 3), groups=2048), 2 / 21),
        (nn.Conv2d(10000, 1, 1), 2.0),
    ],
    ids=["1x1", "3x3", "depthwise", "grouped", "strip", "one output"],
)
def test_a_convolution_starts_with_variance_2_over_the_fan_out_of_a_group(layer: nn.Conv2d, variance: float) -> None:
    initialise_by_fan_out(layer)
    assert float(layer.weight.detach().var()) == pytest.approx(variance, rel=0.06)
    assert layer.weight.detach().mean().abs() < 0.05 * variance**0.5
    assert not layer.bias.any()


def test_a_linear_layer_starts_with_deviation_0_02() -> None:
    layer = nn.Linear(512, 100)
    initialise_by_fan_out(layer)
    assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert not layer.bias.any()


def test_norms_and_bare_parameters_stay_and_layers_may_lack_a_bias() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.LayerNorm(4))
    net.register_parameter("scale", nn.Parameter(torch.full((4,), 0.3)))
    nn.init.constant_(net[1].weight, 0.7)
    initialise_by_fan_out(net)
    assert net[1].weight.tolist() == pytest.approx([0.7] * 4)
    assert net.get_parameter("scale").tolist() == pytest.approx([0.3] * 4)


def test_a_net_without_memory_stays_without() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1, device="meta"), nn.Linear(4, 2, device="meta"))
    initialise_by_fan_out(net)
    assert all(p.is_meta for p in net.parameters())
