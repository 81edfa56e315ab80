"""A sum of depthwise branches is what its definition says, and merging it into one kernel is exact for any shape."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullfield.errors import ConfigError
from fullfield.layers.reparam import Branch, DepthwiseNorm, ReparamDepthwiseConv, embed_kernel

F64 = torch.float64
CASES: dict[str, tuple[int | tuple[int, int], list[Branch]]] = {
    "one": (1, [Branch(1)]),
    "alone": (7, []),
    "replknet": (31, [Branch(5)]),
    "same_size": (5, [Branch(5)]),
    "unireplknet": (13, [Branch(5), Branch(7, 2), Branch(3, 3), Branch(3, 4), Branch(3, 5)]),
    "tall": ((11, 3), [Branch(3), Branch((3, 1)), Branch((5, 1), 2)]),
    "wide": ((3, 9), [Branch((1, 9)), Branch((1, 3), 4)]),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def trained(layer: ReparamDepthwiseConv) -> ReparamDepthwiseConv:
    """Give every norm statistics, weights and biases as after some training, one channel nearly constant."""
    for number, norm in enumerate(module for module in layer.modules() if isinstance(module, nn.BatchNorm2d)):
        c = norm.num_features
        norm.running_mean.copy_(normal(c, seed=4 * number))
        norm.running_var.copy_(normal(c, seed=4 * number + 1).square() + 0.1)
        norm.running_var[0] = 1e-6
        norm.weight.copy_(normal(c, seed=4 * number + 2))
        norm.bias.copy_(normal(c, seed=4 * number + 3))
    return layer.eval()


def convolved(x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """Return the zero-padded depthwise convolution as a sum over taps of the shifted, scaled map."""
    taps_h, taps_w = weight.shape[2:]
    y = torch.zeros_like(x)
    for i in range(taps_h):
        for j in range(taps_w):
            down, right = dilation * (i - taps_h // 2), dilation * (j - taps_w // 2)
            y += weight[:, 0, i, j, None, None] * shifted(x, down, right)
    return y[:, :, ::stride, ::stride]


def shifted(x: Tensor, down: int, right: int) -> Tensor:
    """Return s with s[h, w] = x[h + down, w + right], zero outside the map."""
    H, W = x.shape[2:]
    s = torch.zeros_like(x)
    for h in range(max(0, -down), min(H, H - down)):
        for w in range(max(0, -right), min(W, W - right)):
            s[:, :, h, w] = x[:, :, h + down, w + right]
    return s


def normalised(x: Tensor, norm: nn.Module) -> Tensor:
    assert isinstance(norm, nn.BatchNorm2d)
    mean, var, weight, bias = (t[:, None, None] for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    return (x - mean) / torch.sqrt(var + norm.eps) * weight + bias


def by_definition(x: Tensor, layer: ReparamDepthwiseConv, branches: list[Branch], stride: int) -> Tensor:
    y = normalised(convolved(x, layer.large.conv.weight, stride, 1), layer.large.norm)
    for module, branch in zip(layer.branches, branches, strict=True):
        y = y + normalised(convolved(x, module.conv.weight, stride, branch.dilation), module.norm)
    return y


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("size", [(9, 12), (7, 7), (1, 1)], ids=str)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_branches_sum_as_defined_and_their_merged_kernel_gives_the_same(
    case: str, stride: int, size: tuple[int, int]
) -> None:
    kernel_size, branches = CASES[case]
    layer = trained(ReparamDepthwiseConv(2, kernel_size, branches, stride, dtype=F64))
    x = normal(2, 2, *size, seed=9)
    y = by_definition(x, layer, branches, stride)
    assert relative_error(layer(x), y) < 1e-12
    layer.merge_branches()
    assert relative_error(layer(x), y) < 1e-12


def test_parameters_are_named_by_branch_and_then_merged_into_two() -> None:
    layer = ReparamDepthwiseConv(4, 7, [Branch(3), Branch(3, 2)])
    norm = ("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked")
    parts = ("large", "branches.0", "branches.1")
    assert set(layer.state_dict()) == {f"{part}.{leaf}" for part in parts for leaf in ("conv.weight", *norm)}
    assert layer.branches[1].conv.weight.shape == (4, 1, 3, 3)
    layer.merge_branches()
    assert {name: tuple(t.shape) for name, t in layer.state_dict().items()} == {
        "merged.weight": (4, 1, 7, 7),
        "merged.bias": (4,),
    }


def test_in_training_every_branch_is_normalised_by_its_own_batch_and_gets_a_gradient() -> None:
    layer = ReparamDepthwiseConv(3, 5, [Branch(3), Branch(3, 2)], dtype=F64).train()
    x = normal(4, 3, 6, 8)
    expected = torch.zeros_like(x)
    for part in (layer.large, *layer.branches):
        conv, norm = part.conv, part.norm
        alone = F.conv2d(x, conv.weight, padding=conv.padding, dilation=conv.dilation, groups=3)
        expected += F.batch_norm(alone, None, None, norm.weight, norm.bias, training=True)
    y = layer(x)
    assert relative_error(y.detach(), expected.detach()) < 1e-12
    (y * normal(4, 3, 6, 8, seed=1)).sum().backward()
    assert all(p.grad is not None and p.grad.norm() > 0 for p in layer.parameters())


@torch.no_grad()
def test_merging_again_fusing_and_fusing_the_parts_first_all_give_the_same() -> None:
    branches, x = [Branch(5), Branch(3, 3)], normal(1, 3, 8, 9)
    layer = trained(ReparamDepthwiseConv(3, 7, branches, dtype=F64))
    y = layer(x)
    parts_first = copy.deepcopy(layer)
    for part in parts_first.modules():
        if isinstance(part, DepthwiseNorm):
            part.fuse()
            part.fuse()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in parts_first.modules())
    assert relative_error(parts_first(x), y) < 1e-12
    fused = copy.deepcopy(layer)
    fused.fuse()
    for merged in (layer, parts_first, fused):
        merged.merge_branches()
        state = {name: t.clone() for name, t in merged.state_dict().items()}
        merged.merge_branches()
        merged.fuse()
        assert all(torch.equal(state[name], t) for name, t in merged.state_dict().items())
        assert relative_error(merged(x), y) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernels_are_summed_in_float64_and_stored_in_their_dtype(dtype: torch.dtype) -> None:
    layer = trained(ReparamDepthwiseConv(3, 5, [Branch(3)], dtype=F64)).to(dtype)
    exact = copy.deepcopy(layer).double()
    layer.merge_branches()
    exact.merge_branches()
    assert torch.equal(layer.merged.weight, exact.merged.weight.to(dtype))
    assert torch.equal(layer.merged.bias, exact.merged.bias.to(dtype))


def test_merging_keeps_device_and_mode_and_draws_no_random_numbers() -> None:
    on_meta = ReparamDepthwiseConv(3, 5, [Branch(3)], device="meta", dtype=torch.float16)
    on_meta.merge_branches()
    assert {(p.device.type, p.dtype) for p in on_meta.parameters()} == {("meta", torch.float16)}
    for training in (False, True):
        layer = ReparamDepthwiseConv(3, 5, [Branch(3)]).train(training)
        before = torch.get_rng_state()
        layer.merge_branches()
        assert torch.equal(torch.get_rng_state(), before)
        assert all(module.training is training for module in layer.modules())
        assert all(p.requires_grad for p in layer.parameters())


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("taps", [(1, 1), (3, 5), (5, 3)], ids=str)
def test_an_embedded_kernel_convolves_like_the_dilated_one(taps: tuple[int, int], dilation: int) -> None:
    weight, x = normal(2, 1, *taps), normal(1, 2, 20, 19, seed=1)
    larger = embed_kernel(weight, (13, 15), dilation)
    assert larger.shape == (2, 1, 13, 15)
    assert int((larger != 0).sum()) == weight.numel()
    padding = [dilation * (side // 2) for side in taps]
    expected = F.conv2d(x, weight, padding=padding, dilation=dilation, groups=2)
    torch.testing.assert_close(F.conv2d(x, larger, padding=(6, 7), groups=2), expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_strips_sum_to_one_square_kernel() -> None:
    strips = [DepthwiseNorm(2, size, dtype=F64).eval() for size in ((11, 3), (3, 11), (3, 3))]
    kernels, biases = zip(*(strip.as_kernel((11, 11)) for strip in strips), strict=True)
    x = normal(1, 2, 14, 13)
    dense = F.conv2d(x, sum(kernels), sum(biases), padding=5, groups=2)
    torch.testing.assert_close(dense, sum(strip(x) for strip in strips), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("kernel_size", "branches", "message"),
    [
        (6, [], "6 taps"),
        ((7, 4), [], "4 taps"),
        (7, [Branch(4)], "4 taps"),
        (7, [Branch(9)], r"reaches over 9 pixels, more than the 7 .* smaller"),
        (7, [Branch(3, 4)], "dilation 4 reaches over 9"),
        ((11, 3), [Branch(5)], "reaches over 5 pixels, more than the 3"),
        (7, [Branch(3, 0)], "dilations at least 1"),
        (7, [Branch(-3)], "odd"),
        (0, [], "odd"),
    ],
)
def test_kernels_that_cannot_be_merged_are_refused_at_once(kernel_size: Any, branches: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReparamDepthwiseConv(4, kernel_size, branches)


def test_a_norm_without_running_statistics_is_refused_and_nothing_is_lost() -> None:
    layer = ReparamDepthwiseConv(3, 5, [Branch(3)])
    layer.branches[0].norm = nn.BatchNorm2d(3, track_running_stats=False)
    names = list(layer.state_dict())
    with pytest.raises(ValueError, match="running statistics"):
        layer.merge_branches()
    assert list(layer.state_dict()) == names
