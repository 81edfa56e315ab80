"""Two strips and a small square against a sum over taps, and merged in either way against themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fullfield.errors import ConfigError
from fullfield.layers.band_depthwise import BandDepthwiseConv
from tests.layers.by_hand import depthwise_by_hand

F64 = torch.float64
SIZES = [(51, 5), (13, 5), (7, 3), (9, 1), (7, 5), (5, 5), (1, 1)]


def image(height: int = 6, width: int = 9, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, channels, height, width, dtype=F64, generator=generator)


@torch.no_grad()
def band(kernel_size: int, side: int, *, norm: bool = True, channels: int = 3) -> BandDepthwiseConv:
    """Make one in eval mode, with norms as after some training."""
    torch.manual_seed(0)
    layer = BandDepthwiseConv(channels, kernel_size, side, norm=norm, dtype=F64).eval()
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.normal_()
            module.bias.normal_()
    return layer


def normalised_by_hand(x: Tensor, norm: nn.Module) -> Tensor:
    if isinstance(norm, nn.Identity):
        return x
    mean, var, weight, bias = (t[:, None, None] for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    return (x - mean) / torch.sqrt(var + norm.eps) * weight + bias


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(("kernel_size", "side"), [(7, 3), (13, 5), (5, 5)])
@torch.no_grad()
def test_it_is_the_sum_of_a_tall_a_wide_and_a_small_convolution(kernel_size: int, side: int, norm: bool) -> None:
    layer, x = band(kernel_size, side, norm=norm), image()
    parts = [layer.tall, layer.wide] + ([layer.small] if side < kernel_size else [])
    assert [tuple(p.conv.weight.shape[2:]) for p in parts] == [
        (kernel_size, side),
        (side, kernel_size),
        (side, side),
    ][: len(parts)]
    expected = sum(normalised_by_hand(depthwise_by_hand(x, p.conv), p.norm) for p in parts)
    assert relative_error(layer(x), expected) < 1e-12


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("how", ["merge_branches", "merge_dense", "fuse"])
@pytest.mark.parametrize(("kernel_size", "side"), SIZES)
@torch.no_grad()
def test_merging_changes_nothing_and_a_second_time_nothing_at_all(
    kernel_size: int, side: int, how: str, norm: bool
) -> None:
    layer = band(kernel_size, side, norm=norm)
    for size in [(1, 1), (6, 9), (60, 53)]:
        x = image(*size)
        y = band(kernel_size, side, norm=norm)(x)
        getattr(layer, how)()
        merged = layer(x)
        assert relative_error(merged, y) < 1e-12
        getattr(layer, how)()
        assert torch.equal(layer(x), merged)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in layer.modules())
    assert not layer.training


@pytest.mark.parametrize(("kernel_size", "side"), [(51, 5), (13, 5)])
@torch.no_grad()
def test_strips_may_be_merged_into_a_dense_kernel_later(kernel_size: int, side: int) -> None:
    layer, x = band(kernel_size, side), image(60, 53)
    y = layer(x)
    layer.merge_branches()
    layer.merge_dense()
    assert relative_error(layer(x), y) < 1e-12
    assert {name: tuple(t.shape) for name, t in layer.state_dict().items()} == {
        "dense.weight": (3, 1, kernel_size, kernel_size),
        "dense.bias": (3,),
    }


@torch.no_grad()
def test_children_may_fold_their_norms_first() -> None:
    layer, x = band(13, 5), image()
    y = layer(x)
    for module in list(layer.children()):
        module.fuse()
    layer.fuse()
    assert relative_error(layer(x), y) < 1e-12


@pytest.mark.parametrize(("kernel_size", "side"), SIZES)
def test_merged_form_is_the_one_with_fewer_products(kernel_size: int, side: int) -> None:
    layer = band(kernel_size, side)
    layer.merge_branches()
    shapes = {name: tuple(t.shape[2:]) for name, t in layer.state_dict().items() if name.endswith("weight")}
    products = sum(height * width for height, width in shapes.values())
    assert products == min(kernel_size**2, 2 * kernel_size * side)
    assert shapes.keys() == ({"dense.weight"} if kernel_size < 2 * side else {"tall.weight", "wide.weight"})


def test_merging_leaves_the_global_random_numbers_alone() -> None:
    layer = band(13, 5)
    before = torch.get_rng_state()
    layer.merge_branches()
    layer.merge_dense()
    assert torch.equal(torch.get_rng_state(), before)


def test_merging_keeps_the_dtype() -> None:
    for how in ("merge_branches", "merge_dense"):
        layer = BandDepthwiseConv(3, 13, 5, dtype=torch.bfloat16).eval()
        getattr(layer, how)()
        assert {t.dtype for t in layer.state_dict().values()} == {torch.bfloat16}


def test_gradients_are_finite_and_reach_everything() -> None:
    layer, x = band(7, 3).train(), image().requires_grad_()
    layer(x).square().sum().backward()
    for tensor in (x, *layer.parameters()):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any()


@pytest.mark.parametrize(("kernel_size", "side"), [(50, 5), (51, 4), (5, 7), (5, 0), (5, -1)])
def test_impossible_sides_are_named(kernel_size: int, side: int) -> None:
    with pytest.raises(ConfigError, match=rf"odd.*a band of {side} and a kernel of {kernel_size}"):
        BandDepthwiseConv(3, kernel_size, side)
