"""gnConv against its equations, written with convolutions on (B, C, H, W) in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullfield.errors import ConfigError
from fullfield.layers.depthwise import DepthwiseConv2d
from fullfield.layers.gnconv import GnConv, gnconv_widths

F64 = torch.float64


def layer_of(order: int, scale: float = 0.3, dim: int = 16) -> GnConv:
    """Make a layer whose gates are depthwise 3x3 with biases."""
    return GnConv(dim, order, DepthwiseConv2d(sum(gnconv_widths(dim, order)), 3, dtype=F64), scale, dtype=F64)


def image(height: int = 6, width: int = 7, channels: int = 16) -> Tensor:
    return torch.randn(2, channels, height, width, dtype=F64)


def by_equations(layer: GnConv, x: Tensor) -> Tensor:
    """Run the recursion literally: project once, cut, multiply every gate by s."""

    def pointwise(x: Tensor, linear: nn.Module) -> Tensor:
        return F.conv2d(x, linear.weight[:, :, None, None], linear.bias)

    projected = pointwise(x, layer.proj_in)
    p, q = projected[:, : layer.widths[0]], projected[:, layer.widths[0] :]
    conv = layer.depthwise
    gates = F.conv2d(q, conv.weight, conv.bias, padding=1, groups=q.shape[1]) * layer.scale
    begin = 0
    for k, width in enumerate(layer.widths):
        p = (p if k == 0 else pointwise(p, layer.pws[k - 1])) * gates[:, begin : begin + width]
        begin += width
    return pointwise(p, layer.proj_out)


@pytest.mark.parametrize(
    ("dim", "order", "widths"), [(64, 2, (32, 64)), (512, 5, (32, 64, 128, 256, 512)), (6, 1, (6,))]
)
def test_gates_double_in_width_up_to_the_layer_s_and_fill_twice_its_channels(
    dim: int, order: int, widths: tuple[int, ...]
) -> None:
    assert gnconv_widths(dim, order) == widths
    assert widths[0] + sum(widths) == 2 * dim


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_layer_is_its_equations(order: int, channels_last: bool) -> None:
    layer, x = layer_of(order), image()
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(x), by_equations(layer, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (1, 5)], ids=str)
def test_maps_may_be_a_pixel_high(size: tuple[int, int]) -> None:
    layer, x = layer_of(3), image(*size)
    torch.testing.assert_close(layer(x), by_equations(layer, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 4])
@torch.no_grad()
def test_order_n_without_biases_is_a_polynomial_of_degree_n_plus_1(order: int) -> None:
    layer, x = layer_of(order), image()
    for name, parameter in layer.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
    torch.testing.assert_close(layer(2 * x), 2 ** (order + 1) * layer(x), rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_the_equations() -> None:
    layer, x = layer_of(3), image()
    twin, gradients = copy.deepcopy(layer), []
    for module, run in ((layer, layer), (twin, lambda x: by_equations(twin, x))):
        leaf = x.clone().requires_grad_()
        run(leaf).square().sum().backward()
        gradients.append([leaf.grad, *(p.grad for p in module.parameters())])
    for actual, expected in zip(*gradients, strict=True):
        assert expected.any()
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_fusing_folds_the_scale_and_changes_nothing_else() -> None:
    layer, x = layer_of(4), image()
    y = layer(x)
    layer.fuse()
    assert layer.scale == 1
    torch.testing.assert_close(layer(x), y, rtol=1e-12, atol=1e-12)
    once = copy.deepcopy(layer.state_dict())
    layer.fuse()
    assert all(torch.equal(once[name], tensor) for name, tensor in layer.state_dict().items())


def test_dtype_and_device_reach_every_parameter() -> None:
    layer = GnConv(8, 2, nn.Identity(), device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.bfloat16)}
    assert layer(torch.empty(3, 8, 5, 4, device="meta", dtype=torch.bfloat16)).shape == (3, 8, 5, 4)


@pytest.mark.parametrize(
    ("dim", "order", "message"),
    [
        (16, 0, "order of a recursive gated convolution must be at least 1, got 0"),
        (12, 4, "order 4 halves the channels 3 times, which 12 channels do not allow; use a multiple of 8"),
        (0, 1, "0 channels"),
    ],
)
def test_channels_that_cannot_be_halved_are_refused(dim: int, order: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GnConv(dim, order, nn.Identity())


def test_printing_tells_channels_order_and_scale() -> None:
    assert layer_of(3).extra_repr() == "16, order=3, scale=0.3"
