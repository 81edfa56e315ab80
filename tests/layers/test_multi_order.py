"""Multi-order gated aggregation against its equations, written with shifted products in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fullfield.errors import ConfigError
from fullfield.layers.multi_order import MultiOrderDepthwise, MultiOrderGatedAggregation, split_channels

from .by_hand import depthwise_by_hand, pointwise_by_hand

F64 = torch.float64


def image(channels: int = 8, size: tuple[int, int] = (10, 13)) -> Tensor:
    return torch.randn(2, channels, *size, dtype=F64)


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def orders_by_hand(x: Tensor, layer: MultiOrderDepthwise, split: tuple[int, int, int]) -> Tensor:
    a, b, _ = split
    every, second, third = layer.depthwise
    first = depthwise_by_hand(x, every)
    middle = depthwise_by_hand(first[:, a : a + b], second)
    high = depthwise_by_hand(first[:, a + b :], third)
    return pointwise_by_hand(torch.cat([first[:, :a], middle, high], 1), layer.pointwise)


@pytest.mark.parametrize("size", [(10, 13), (25, 6), (1, 1)], ids=str)
@pytest.mark.parametrize(
    ("dim", "dilations", "ratio", "split"),
    [(8, (1, 2, 3), (1, 3, 4), (1, 3, 4)), (16, (1, 2, 3), (1, 3, 4), (2, 6, 8)), (8, (2, 1, 1), (2, 1, 1), (4, 2, 2))],
    ids=str,
)
@torch.no_grad()
def test_orders_convolve_shares_of_the_channels_once_more(
    size: tuple[int, int],
    dim: int,
    dilations: tuple[int, int, int],
    ratio: tuple[int, int, int],
    split: tuple[int, int, int],
) -> None:
    layer, x = MultiOrderDepthwise(dim, dilations, ratio, dtype=F64), image(dim, size)
    assert layer.split == split
    torch.testing.assert_close(layer(x), orders_by_hand(x, layer, split), rtol=1e-12, atol=1e-12)


def test_the_three_shares_see_5_13_and_23_pixels() -> None:
    layer, x = MultiOrderDepthwise(8, dtype=F64), image(8, (41, 41)).requires_grad_()
    with torch.no_grad():
        layer.pointwise.weight.copy_(torch.eye(8, dtype=F64)[:, :, None, None])
    spans = []
    for channel in (0, 1, 3, 4, 7):
        (seen,) = torch.autograd.grad(layer(x)[:, channel, 20, 20].sum(), x)
        rows = (seen.abs().sum((0, 1, 3)) > 1e-9).nonzero()  # a transform rounds zeros
        spans.append(int(rows.max() - rows.min()) + 1)
    assert spans == [5, 13, 13, 23, 23]


@pytest.mark.parametrize("size", [(10, 13), (1, 1)], ids=str)
@torch.no_grad()
def test_aggregation_decomposes_then_gates_a_context(size: tuple[int, int]) -> None:
    layer, x = MultiOrderGatedAggregation(8, dtype=F64), image(8, size)
    layer.sigma.normal_()
    y = pointwise_by_hand(x, layer.project_in)
    common = y.flatten(2).sum(2)[:, :, None, None] / (size[0] * size[1])
    z = silu(y + layer.sigma.view(1, 8, 1, 1) * (y - common))
    gated = silu(pointwise_by_hand(z, layer.gate)) * silu(orders_by_hand(z, layer.orders, (1, 3, 4)))
    torch.testing.assert_close(layer(x), pointwise_by_hand(gated, layer.project_out), rtol=1e-12, atol=1e-12)


def test_sigma_starts_at_its_scale_and_parameters_are_those_of_the_convolutions() -> None:
    layer = MultiOrderGatedAggregation(8, scale=0.25)
    assert layer.sigma.tolist() == [0.25] * 8
    orders = 8 * 26 + 3 * 26 + 4 * 50 + 72
    assert sum(p.numel() for p in layer.parameters()) == 3 * 72 + 8 + orders


def test_the_input_is_left_as_it_was() -> None:
    layer, x = MultiOrderGatedAggregation(8, dtype=F64), image()
    before = x.clone()
    layer(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_are_finite_and_reach_everything(training: bool) -> None:
    layer, x = MultiOrderGatedAggregation(8, dtype=F64).train(training), image().requires_grad_()
    layer(x).square().sum().backward()
    for tensor in (x, *layer.parameters()):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any()


@pytest.mark.parametrize("dim", [12, 4])
def test_channels_that_the_split_does_not_cut_evenly_are_refused(dim: int) -> None:
    with pytest.raises(ConfigError, match=rf"channel_split \(1, 3, 4\) .* {dim} channels .*; take 8 channels"):
        MultiOrderGatedAggregation(dim)


def test_shares_add_up_to_all_channels() -> None:
    assert split_channels(96, (1, 3, 4)) == (12, 36, 48)
