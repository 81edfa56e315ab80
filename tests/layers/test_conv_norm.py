"""Folding norms into convolutions is exact, twice is once, and impossible cases are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fullfield.layers import ConvNorm, fold_norm_into_next_conv

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def trained_norm(channels: int) -> nn.BatchNorm2d:
    """Return a norm with statistics, weights and biases as after some training, two channels nearly constant."""
    norm = nn.BatchNorm2d(channels, dtype=F64).eval()
    norm.running_mean.copy_(normal(channels, seed=1))
    norm.running_var.copy_(normal(channels, seed=2).square() + 0.1)
    norm.running_var[:2] = 1e-8
    norm.weight.copy_(normal(channels, seed=3))
    norm.bias.copy_(normal(channels, seed=4))
    return norm


def normalised(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Return BatchNorm in eval mode as its definition reads."""
    mean, var, weight, bias = (t[:, None, None] for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    return (x - mean) / torch.sqrt(var + norm.eps) * weight + bias


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 3, 7])
@torch.no_grad()
def test_fused_convolution_equals_convolution_then_norm(kernel_size: int, stride: int) -> None:
    layer = ConvNorm(3, 8, kernel_size, stride, dtype=F64).eval()
    layer.norm = trained_norm(8)
    x = normal(2, 3, 9, 10)
    weight = layer.conv.weight.clone()
    y = normalised(nn.functional.conv2d(x, weight, stride=stride, padding=kernel_size // 2), layer.norm)
    torch.testing.assert_close(layer(x), y, rtol=1e-12, atol=1e-12)
    layer.fuse()
    assert isinstance(layer.norm, nn.Identity)
    torch.testing.assert_close(layer(x), y, rtol=1e-12, atol=1e-11)
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.fuse()
    assert all(torch.equal(state[name], tensor) for name, tensor in layer.state_dict().items())


def test_fused_parameters_keep_dtype_and_device() -> None:
    for dtype, device in [(torch.bfloat16, "cpu"), (torch.float32, "meta")]:
        layer = ConvNorm(3, 8, dtype=dtype, device=device)
        layer.fuse()
        assert {(p.dtype, p.device.type) for p in layer.parameters()} == {(dtype, device)}


@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_norm_folded_into_the_next_1x1_changes_nothing(bias: bool) -> None:
    norm, conv, x = trained_norm(6), nn.Conv2d(6, 5, 1, stride=2, bias=bias, dtype=F64), normal(2, 6, 7, 8)
    y = conv(normalised(x, norm))
    fold_norm_into_next_conv(norm, conv)
    torch.testing.assert_close(conv(x), y, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize(
    ("kernel_size", "options"),
    [(3, {"padding": 1}), (1, {"groups": 2}), ((1, 3), {}), (1, {"padding": 1})],
    ids=["3x3", "grouped", "1x3", "padded"],
)
def test_a_convolution_that_cannot_take_the_norm_is_refused_untouched(kernel_size: Any, options: Any) -> None:
    conv = nn.Conv2d(6, 6, kernel_size, **options)
    weight = conv.weight.clone()
    with pytest.raises(ValueError, match="dense 1x1"):
        fold_norm_into_next_conv(nn.BatchNorm2d(6), conv)
    assert torch.equal(conv.weight, weight)


def test_a_norm_without_running_statistics_is_refused() -> None:
    layer = ConvNorm(3, 4)
    layer.norm = nn.BatchNorm2d(4, track_running_stats=False)
    with pytest.raises(ValueError, match="running statistics"):
        layer.fuse()


def test_convolution_and_norm_keep_the_size_at_stride_1_and_halve_it_rounded_up_at_stride_2() -> None:
    for size in [(1, 1), (5, 6), (7, 8)]:
        x = torch.zeros(2, 3, *size)
        assert ConvNorm(3, 4)(x).shape == (2, 4, *size)
        assert ConvNorm(3, 4, stride=2)(x).shape == (2, 4, -(-size[0] // 2), -(-size[1] // 2))
