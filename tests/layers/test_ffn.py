"""FFN, RaFFN and RaGLU against their formulas, written with torch's functions in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullfield.layers import FFN, RaFFN, RaGLU, RegionAttention, RegionPWConv

F64 = torch.float64


def convolved(x: Tensor, layer: nn.Conv2d, groups: int = 1) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2, groups=groups)


def image(channels: int, size: tuple[int, int] = (9, 11)) -> Tensor:
    return torch.randn(2, channels, *size, dtype=F64)


class Doubled(nn.Module):
    """A mixer that a test can see through."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_ffn_is_expand_gelu_project() -> None:
    layer, x = FFN(6, expansion=3, dtype=F64), image(6)
    torch.testing.assert_close(layer(x), convolved(F.gelu(convolved(x, layer.expand)), layer.project))
    assert layer.expand.out_channels == 18


def test_ffn_sees_one_pixel_at_a_time() -> None:
    layer, x = FFN(6, dtype=F64), image(6)
    y = torch.stack([layer(x[:, :, i : i + 1, j : j + 1]) for i in range(9) for j in range(11)], dim=-1)
    torch.testing.assert_close(layer(x), y.view(2, 6, 9, 11))


@pytest.mark.parametrize("inner_residual", [True, False])
def test_raffn_is_mix_expand_depthwise_gelu_project(inner_residual: bool) -> None:
    layer, x = RaFFN(6, Doubled(), inner_residual=inner_residual, dtype=F64), image(6)
    hidden = convolved(3 * x if inner_residual else 2 * x, layer.expand)
    assert hidden.shape[1] == 12
    expected = convolved(F.gelu(convolved(hidden, layer.depthwise, groups=12)), layer.project)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("attention", [nn.Identity(), Doubled()], ids=["nothing", "doubled"])
def test_raglu_gates_values_by_their_neighbourhood_then_attends(attention: nn.Module) -> None:
    layer, x = RaGLU(6, attention, dtype=F64), image(6)
    both = convolved(x, layer.expand)
    assert both.shape[1] == 24
    gate, value = both[:, :12], both[:, 12:]
    hidden = F.gelu(convolved(gate, layer.depthwise, groups=12)) * value
    torch.testing.assert_close(layer(x), convolved(attention(hidden), layer.project), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "params"),
    [
        (FFN(8), (8 * 32 + 32) + (32 * 8 + 8)),
        (RaFFN(8, nn.Identity()), (8 * 16 + 16) + (9 * 16 + 16) + (16 * 8 + 8)),
        (RaGLU(8, nn.Identity()), (8 * 32 + 32) + (9 * 16 + 16) + (16 * 8 + 8)),
    ],
    ids=["ffn", "raffn", "raglu"],
)
def test_parameters_are_those_of_the_convolutions(layer: nn.Module, params: int) -> None:
    assert sum(p.numel() for p in layer.parameters()) == params


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(9, 8), (1, 1)], ids=str)
def test_gradients_are_finite_and_reach_everything(size: tuple[int, int], training: bool) -> None:
    mixer = RegionPWConv(16, region_size=4, heads=2, dtype=F64)
    attention = RegionAttention(32, region_size=4, dtype=F64)
    for layer in (FFN(16, dtype=F64), RaFFN(16, mixer, dtype=F64), RaGLU(16, attention, dtype=F64)):
        x = image(16, size).requires_grad_()
        layer.train(training)(x).square().sum().backward()
        for tensor in (x, *layer.parameters()):
            assert tensor.grad.isfinite().all()
            assert tensor.grad.any()


def test_first_conv_is_the_1x1_that_reads_the_layer_s_input_alone() -> None:
    for layer in (FFN(6), RaGLU(6, nn.Identity())):
        assert layer.first_conv is layer.expand
    assert not hasattr(RaFFN(6, nn.Identity()), "first_conv")  # its mixer and residual read the input too
