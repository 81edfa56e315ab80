"""RegionPWConv is the operator with one learned scale a head, whose start value keeps each channel its own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fullfield.layers import RegionPWConv
from tests.ops import oracle


@pytest.mark.parametrize("similarity", ["cosine", "inner"])
@pytest.mark.parametrize(("size", "region_size", "heads"), [((9, 11), 4, 2), ((3, 5), 7, 1), ((6, 6), 1, 4)], ids=str)
def test_layer_equals_the_loop_over_windows(
    size: tuple[int, int], region_size: int, heads: int, similarity: str
) -> None:
    layer = RegionPWConv(8, region_size, heads, similarity, dtype=torch.float64)
    scale = [0.3, 2.0, -1.0, 0.7][:heads]
    with torch.no_grad():
        layer.scale.copy_(torch.tensor(scale, dtype=torch.float64))
    x = np.random.default_rng(0).standard_normal((2, 8, *size))
    y = layer(torch.from_numpy(x)).detach().numpy()
    assert oracle.relative_error(y, oracle.region_pwconv(x, scale, region_size, similarity)) < 1e-12


@pytest.mark.parametrize(("dim", "heads"), [(64, 1), (64, 4), (256, 1), (512, 8)])
def test_at_the_start_a_channel_weighs_itself_most(dim: int, heads: int) -> None:
    layer = RegionPWConv(dim, heads=heads)
    width = dim // heads
    assert torch.allclose(layer.scale, torch.full((heads,), math.log(width) + 2))
    # softmax over one cosine of 1 and width - 1 of 0: e^s / (e^s + width - 1), which is about e^2 / (e^2 + 1)
    own = math.exp(layer.scale[0].item()) / (math.exp(layer.scale[0].item()) + width - 1)
    assert own == pytest.approx(math.exp(2) / (math.exp(2) + 1), abs=0.01)


def test_inner_product_starts_with_the_same_diagonal_on_windows_of_64_pixels() -> None:
    scale = RegionPWConv(64, similarity="inner").scale
    assert 64 * scale.item() == pytest.approx(math.log(64) + 2)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(9, 8), (4, 4), (1, 1)], ids=str)
def test_gradients_are_finite_even_for_windows_of_one_pixel(size: tuple[int, int], training: bool) -> None:
    layer = RegionPWConv(16, region_size=4, heads=2).train(training)
    x = torch.randn(2, 16, *size)
    x[:, 3] = 0  # a dead channel
    x.requires_grad_()
    layer(x).square().sum().backward()
    assert x.grad.isfinite().all()
    assert layer.scale.grad.isfinite().all()


def test_heads_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="64 channels, 3 heads"):
        RegionPWConv(64, heads=3)
    with pytest.raises(ValueError, match="heads"):
        RegionPWConv(64, heads=0)


def test_unknown_similarity_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'cosin'.*did you mean 'cosine'"):
        RegionPWConv(64, similarity="cosin")


def test_its_only_parameter_is_one_scale_a_head() -> None:
    assert [tuple(p.shape) for p in RegionPWConv(32, heads=4).parameters()] == [(4,)]
