"""Theoretical fields against published figures, and against the spread of NaN in float64."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.layers import create_conv2d
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

import fullfield
from fullfield.errors import ConfigError
from fullfield.layers.depthwise import DepthwiseConv2d
from fullfield.measure.erf_probe import dependence_window
from fullfield.measure.receptive_field import ReceptiveField, receptive_field


class Residual(nn.Module):
    """x + f(x), or shortcut(x) + f(x)."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)


class ChannelsLast(nn.Module):
    """LayerNorm and linear layer on a permuted map, as in ConvNeXt."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class Sliced(nn.Module):
    """Every second row from the second on, after padding on the left only."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(nn.functional.pad(x, (2, 0))[:, :, 1::2].chunk(3, dim=1), dim=1)


NETS: dict[str, list[Any]] = {
    "chain": [nn.Conv2d(3, 4, 5, 2, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, dilation=3, padding=3), nn.MaxPool2d(3, 2, 1)],
    "even kernels": [nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 2, padding=1), nn.AvgPool2d(2)],
    "oblong": [nn.Conv2d(3, 4, (3, 7), (1, 2), (1, 3)), nn.BatchNorm2d(4), nn.GELU(), nn.Conv2d(4, 4, (5, 1))],
    "residual": [nn.Conv2d(3, 4, 3), Residual(nn.Conv2d(4, 4, 7, padding=3)), nn.Hardswish()],
    "shortcut": [Residual(nn.Conv2d(3, 6, 3, 2, 1), nn.Sequential(nn.AvgPool2d(2, 2), nn.Conv2d(3, 6, 1)))],
    "same padding": [create_conv2d(3, 4, 3, stride=2, padding="same"), nn.Conv2d(4, 4, 3, padding="same")],
    "channels last": [nn.Conv2d(3, 4, 4, 4), Residual(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), ChannelsLast(4)))],
    "sliced": [Sliced(), nn.Conv2d(3, 4, 3)],
    "ours": [DepthwiseConv2d(3, 13), DepthwiseConv2d(3, (3, 9), 2), DepthwiseConv2d(3, 3, dilation=2)],
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("position", [(0, 0), (2, 3), (-1, -1)], ids=str)
def test_field_is_what_nan_can_reach(name: str, position: tuple[int, int]) -> None:
    model = nn.Sequential(*NETS[name]).double().eval()
    images = torch.randn(1, 3, 40, 48, dtype=torch.float64)
    map_size = model(images).shape[2:]
    unit = (position[0] % map_size[0], position[1] % map_size[1])
    field = receptive_field(model, "output", images)
    assert field.window(unit, (40, 48)) == dependence_window(model, "output", unit, images)


# Araujo, Norris, Sim, Distill 2019, table of receptive field sizes
PUBLISHED = {
    "alexnet": (lambda: torchvision.models.alexnet().features, "12", 195),
    "vgg16": (lambda: make_layers(cfgs["D"]), "30", 212),
    "mobilenet_v1": (lambda: timm.create_model("mobilenetv1_100"), "blocks.4", 315),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_field_is_the_published_one(name: str) -> None:
    build, layer, side = PUBLISHED[name]
    with torch.device("meta"):
        model = build()
        assert receptive_field(model, layer, torch.zeros(1, 3, 224, 224)).size == (side, side)


def test_field_of_resnet50_follows_from_its_layout() -> None:
    side, stride = 7 + 2 * 2, 4  # 7x7 stride 2, then 3x3 stride 2
    for stage, depth in enumerate((3, 4, 6, 3)):
        for block in range(depth):
            side += 2 * stride
            stride *= 2 if stage and block == 0 else 1
    with torch.device("meta"):
        field = receptive_field(timm.create_model("resnet50"), "layer4", torch.zeros(1, 3, 64, 64))
    assert (field.size, field.stride, field.centre) == ((side, side), (32, 32), (0, 0))
    assert str(field) == "427×427 px"


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.GroupNorm(1, 4), "group_norm"),
        (timm.layers.SqueezeExcite(4), "mean"),
        (GlobalResponseNorm(4, channels_last=False), "norm"),
        (fullfield.layers.RegionPWConv(4), "RegionPWConv"),
        (fullfield.layers.RegionAttention(4, region_size=1), "RegionAttention"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_global_layers_make_the_field_the_whole_image_and_units_keep_their_place(layer: nn.Module, reason: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 4, 4), layer, nn.Conv2d(4, 4, 3, padding=1))
    images = torch.randn(1, 3, 64, 64)
    field = receptive_field(model, "output", images)
    assert field.size is None
    assert field.followed
    assert reason in field.limit
    assert field.centre_of((2, 3)) == (9.5, 13.5)
    unit = (4, 4)
    window = dependence_window(model.double(), "output", unit, images.double())
    assert window is not None
    # 16 x 16 units, windows of every seventh: the 3x3 sees those of phases 3 to 5, whose first row is 3 and last is 12
    assert window == {"RegionPWConv": (12, 12, 52, 52)}.get(reason, (0, 0, 64, 64))


class Halves(nn.Module):
    """Mix each half of the rows by itself, as window attention does."""

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        windows = x.reshape(B, C, 2, H // 2 * W)
        return windows.softmax(dim=-1).reshape(B, C, H, W)


def test_what_cannot_be_followed_is_said_and_probed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 4, 4), Halves()).double()
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    field = receptive_field(model, "1", images)
    assert not field.followed
    assert str(field) == "not followed past reshape in 1"
    assert field.window((0, 0), (32, 32)) is None
    assert dependence_window(model, "1", (1, 1), images) == (0, 0, 16, 32)
    assert dependence_window(model, "1", (7, 1), images) == (16, 0, 32, 32)


def test_an_autograd_function_is_not_taken_for_a_constant() -> None:
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: Any, x: Tensor) -> Tensor:
            return torch.from_numpy(2 * x.numpy())

    class Doubling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Twice.apply(x)

    field = receptive_field(nn.Sequential(nn.Conv2d(3, 4, 3), Doubling()), "1", torch.randn(1, 3, 8, 8))
    assert field == ReceptiveField(None, None, None, "Doubling 1", followed=False)


def test_a_unit_without_the_image_depends_on_no_pixel() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones_like(x)

    assert dependence_window(Constant(), "output", (1, 1), torch.randn(1, 3, 4, 4)) is None


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[0].eval()
    model[0].weight.requires_grad_(False)
    receptive_field(model, "1", torch.randn(2, 3, 8, 8))
    assert [m.training for m in model] == [False, True]
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    assert not model[1].running_mean.any()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_unknown_layer_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no layer 'layr4'; did you mean 'layer4'.*--list-layers"):
        receptive_field(timm.create_model("resnet18"), "layr4", torch.zeros(1, 3, 64, 64))
