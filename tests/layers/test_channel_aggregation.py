"""The channel-aggregating FFN against its equations in float64, and its form for inference against both."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fullfield.layers.channel_aggregation import ChannelAggregationFFN

from .by_hand import depthwise_by_hand, pointwise_by_hand

F64 = torch.float64


def image(channels: int = 6, size: tuple[int, int] = (7, 9)) -> Tensor:
    return torch.randn(2, channels, *size, dtype=F64)


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def trained(dim: int = 6, expansion: int = 4) -> ChannelAggregationFFN:
    """Make a layer whose sigma is no longer nearly 0."""
    layer = ChannelAggregationFFN(dim, expansion, dtype=F64).eval()
    torch.nn.init.normal_(layer.sigma)
    return layer


def by_hand(x: Tensor, layer: ChannelAggregationFFN) -> Tensor:
    h = gelu(depthwise_by_hand(pointwise_by_hand(x, layer.expand), layer.depthwise))
    common = gelu((h * layer.common.weight).sum(1, keepdim=True) + layer.common.bias)
    aggregated = h + layer.sigma.view(1, -1, 1, 1) * (h - common)
    return pointwise_by_hand(aggregated, layer.project)


@pytest.mark.parametrize("size", [(7, 9), (1, 1)], ids=str)
@torch.no_grad()
def test_ffn_expands_gathers_aggregates_and_projects(size: tuple[int, int]) -> None:
    layer, x = trained(), image(size=size)
    torch.testing.assert_close(layer(x), by_hand(x, layer), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_fusing_folds_the_aggregation_into_the_last_convolution() -> None:
    layer, x = trained(), image()
    y = by_hand(x, layer)
    layer.fuse()
    assert "sigma" not in dict(layer.named_parameters())
    torch.testing.assert_close(layer(x), y, rtol=1e-12, atol=1e-12)
    once = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.fuse()
    assert all(torch.equal(once[name], value) for name, value in layer.state_dict().items())


@torch.no_grad()
def test_fusing_adds_no_rounding_to_float32_weights() -> None:
    layer, x = trained().float(), image().float()
    y = by_hand(x.double(), trained_copy(layer))
    layer.fuse()
    assert float((layer(x) - y).norm() / y.norm()) < 1e-6


def trained_copy(layer: ChannelAggregationFFN) -> ChannelAggregationFFN:
    """Return the same layer in float64."""
    twin = ChannelAggregationFFN(6, dtype=F64)
    twin.load_state_dict(layer.state_dict())
    return twin


@torch.no_grad()
def test_sigma_of_zero_leaves_a_plain_depthwise_ffn() -> None:
    layer, x = ChannelAggregationFFN(6, scale=0.0, dtype=F64), image()
    hidden = gelu(depthwise_by_hand(pointwise_by_hand(x, layer.expand), layer.depthwise))
    torch.testing.assert_close(layer(x), pointwise_by_hand(hidden, layer.project), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("expansion", [4, 8])
def test_parameters_are_those_of_the_convolutions_and_one_sigma_a_hidden_channel(expansion: int) -> None:
    hidden = 6 * expansion
    layer = ChannelAggregationFFN(6, expansion)
    assert layer.sigma.tolist() == pytest.approx([1e-5] * hidden)
    assert sum(p.numel() for p in layer.parameters()) == 7 * hidden + 10 * hidden + (hidden + 1) + hidden + 6 * (
        hidden + 1
    )


def test_first_conv_reads_the_layer_s_input() -> None:
    layer = trained()
    assert layer.first_conv is layer.expand


@pytest.mark.parametrize("training", [False, True])
def test_gradients_are_finite_and_reach_everything(training: bool) -> None:
    layer, x = trained().train(training), image().requires_grad_()
    layer(x).square().sum().backward()
    for tensor in (x, *layer.parameters()):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any()
