"""DepthwiseConv2d is nn.Conv2d in all but speed, and replace_depthwise puts it into any model."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fullfield.layers import DepthwiseConv2d
from fullfield.layers.depthwise import replace_depthwise


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("kernel", [3, 13, 31, (5, 51), (51, 5)])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_layer_equals_the_plain_convolution_it_is_named_after(
    kernel: int | tuple[int, int], stride: int, dilation: int, bias: bool
) -> None:
    layer = DepthwiseConv2d(6, kernel, stride, dilation, bias=bias)
    x = torch.randn(2, 6, 21, 18)
    expected = F.conv2d(
        x.double(),
        layer.weight.double(),
        layer.bias.double() if bias else None,
        stride,
        layer.padding,
        dilation,
        groups=6,
    )
    y = layer(x)
    assert y.shape == (2, 6, -(-21 // stride), -(-18 // stride))
    assert relative_error(y, expected) < 1e-5


def test_parameters_and_their_initialisation_are_those_of_conv2d() -> None:
    torch.manual_seed(3)
    plain = nn.Conv2d(6, 6, (5, 3), groups=6)
    torch.manual_seed(3)
    ours = DepthwiseConv2d(6, (5, 3))
    assert isinstance(ours, nn.Conv2d)
    for (name, a), (other, b) in zip(plain.named_parameters(), ours.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(a, b)


def test_an_image_without_a_batch_is_taken_as_by_conv2d() -> None:
    layer, x = DepthwiseConv2d(4, 31), torch.randn(4, 20, 20)
    torch.testing.assert_close(layer(x), layer(x[None])[0], rtol=1e-4, atol=1e-4)


def test_replacing_in_a_large_kernel_convnext_leaves_outputs_gradients_and_state_alone() -> None:
    torch.manual_seed(0)
    model = timm.create_model("convnext_atto", kernel_sizes=31, num_classes=5).eval()
    original, state = copy.deepcopy(model), {name: value.clone() for name, value in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    assert replace_depthwise(model) == sum(original.stages[i].blocks.__len__() for i in range(4)) == 12
    assert {name: id(p) for name, p in model.named_parameters()} == {name: id(p) for name, p in parameters.items()}
    assert list(model.state_dict()) == list(state)
    model.load_state_dict(state)
    x = torch.randn(1, 3, 128, 96)
    for net in (model, original):
        net(x).square().sum().backward()
    assert relative_error(model(x), original(x)) < 1e-4
    for ours, theirs in zip(model.parameters(), original.parameters(), strict=True):
        assert relative_error(ours.grad, theirs.grad) < 1e-3
    assert replace_depthwise(model) == 0


def test_a_net_without_depthwise_convolutions_is_left_alone() -> None:
    model = timm.create_model("resnet18", num_classes=2)
    modules = list(model.modules())
    assert replace_depthwise(model) == 0
    assert all(before is after for before, after in zip(modules, model.modules(), strict=True))


def test_training_mode_device_and_frozen_parameters_stay() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 5, padding=2, groups=4, device="meta")).eval()
    net.requires_grad_(False)
    assert replace_depthwise(net) == 1
    assert isinstance(net[0], DepthwiseConv2d)
    assert net[0].weight.device.type == "meta"
    assert not net[0].training
    assert not any(p.requires_grad for p in net.parameters())


def test_a_convolution_used_twice_stays_one() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    net = nn.Sequential(conv, nn.Sequential(conv), conv)
    assert replace_depthwise(net) == 1
    assert net[0] is net[1][0] is net[2]
    assert isinstance(net[0], DepthwiseConv2d)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 8, 3, padding=1, groups=4),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 4, 4, padding=2, groups=4),
        nn.Conv2d(4, 4, 3, padding="same", groups=4),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, stride=(2, 1)),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, stride=4),
        nn.Conv2d(4, 4, 3, padding=(1, 2), groups=4, dilation=(1, 2)),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="reflect"),
        nn.ConvTranspose2d(4, 4, 3, padding=1, groups=4),
        parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1, groups=4)),
    ],
    ids=str,
)
def test_convolutions_that_are_anything_else_are_not_replaced(conv: nn.Module) -> None:
    net = nn.Sequential(conv)
    assert replace_depthwise(net) == 0
    assert net[0] is conv
