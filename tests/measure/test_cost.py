"""Costs against arithmetic by hand: single layers, ResNet-50 by its published layout, and the dynamic products."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fullfield
from fullfield.errors import ModelNotFoundError
from fullfield.measure import Cost, cost


def resnet50_by_hand() -> tuple[int, int]:
    """Return parameters and MACs at 224 of ResNet-50 (He et al., 2016, with the stride in the 3x3)."""
    params, macs = 0, 0

    def conv(width_in: int, width_out: int, kernel: int, side: int) -> None:
        nonlocal params, macs
        params += kernel**2 * width_in * width_out + 2 * width_out  # with its BatchNorm
        macs += kernel**2 * width_in * width_out * side**2

    conv(3, 64, 7, 112)
    width_in, side = 64, 56
    for stage, depth in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(depth):
            side_in, side = side, 56 // 2**stage
            conv(width_in, width, 1, side_in)
            conv(width, width, 3, side)
            conv(width, 4 * width, 1, side)
            if block == 0:
                conv(width_in, 4 * width, 1, side)
            width_in = 4 * width
    return params + 2048 * 1000 + 1000, macs + 2048 * 1000


def test_resnet50_costs_what_its_layout_says() -> None:
    counted = cost("resnet50")
    assert (counted.params, counted.macs) == resnet50_by_hand()
    assert counted.params == 25_557_032  # as published
    assert 4.08e9 < counted.macs < 4.12e9
    assert (counted.name, counted.input_size) == ("resnet50", (3, 224, 224))


class Flattened(nn.Module):
    """A linear layer on the pixels of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 4 * 5, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


@pytest.mark.parametrize(
    ("module", "size", "params", "macs"),
    [
        (Flattened(), (4, 5), 60 * 7 + 7, 60 * 7),
        (nn.Conv2d(3, 8, 5, padding=2), (9, 10), 25 * 3 * 8 + 8, 25 * 3 * 8 * 90),
        (nn.Conv2d(3, 8, 3, stride=2), (9, 11), 9 * 3 * 8 + 8, 9 * 3 * 8 * 4 * 5),
        (nn.Conv2d(3, 6, 3, padding=1, groups=3), (9, 10), 9 * 6 + 6, 9 * 6 * 90),
        (nn.ReLU(), (9, 10), 0, 0),
    ],
    ids=["linear", "conv", "strided", "depthwise", "nothing"],
)
def test_one_layer_costs_its_products(module: nn.Module, size: tuple[int, int], params: int, macs: int) -> None:
    assert cost(module, image_size=size) == Cost(type(module).__name__, params, macs, 2 * macs, (3, *size))


@pytest.mark.parametrize("name", ["racnn_pico", "racnn_tiny_literal"])
@pytest.mark.parametrize("side", [224, 448])
def test_the_dynamic_products_are_what_convolutions_and_linear_layers_leave(name: str, side: int) -> None:
    model = fullfield.create_model(name, device="meta").eval()
    by_hooks, dynamic = 0, 0

    def count(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal by_hooks, dynamic
        if isinstance(module, nn.Conv2d | nn.Linear):
            by_hooks += module.weight[0].numel() * output.numel()
        else:  # RPWConv: two products of HW x C x d
            B, C, H, W = inputs[0].shape
            dynamic += 2 * B * H * W * C * (C // module.heads)

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | fullfield.layers.RegionPWConv):
            module.register_forward_hook(count)
    # RaGLU applies its first 1x1 by halves, without calling the module
    silent = sum(
        (side // 4 // 2**i) ** 2 * glu.expand.weight.numel()
        for i, stage in enumerate(model.stages)
        for glu in stage.modules()
        if isinstance(glu, fullfield.layers.RaGLU)
    )
    model(torch.zeros(1, 3, side, side, device="meta"))
    assert cost(name, image_size=side).macs == by_hooks + silent + dynamic
    assert 0.05 < dynamic / (by_hooks + silent) < 0.25


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    model = fullfield.create_model("racnn_pico", depths=(1, 1, 1, 1)).train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cost(model, image_size=32)
    assert model.training is training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_the_mode_comes_back_even_if_the_model_fails() -> None:
    model = nn.Sequential(nn.Conv2d(5, 3, 1)).train()
    with pytest.raises(RuntimeError):
        cost(model, image_size=8)
    assert model.training


def test_a_module_and_its_name_cost_the_same() -> None:
    model = fullfield.create_model("racnn_pico", num_classes=5, in_chans=1)
    by_name = cost("racnn_pico", image_size=(64, 96), num_classes=5, in_chans=1)
    by_module = cost(model, image_size=(64, 96))
    assert (by_name.params, by_name.macs, by_name.input_size) == (by_module.params, by_module.macs, (1, 64, 96))
    assert by_module.input_size == (1, 64, 96)


@pytest.mark.parametrize(
    ("name", "params", "gmacs"), [("convnext_tiny", 28.59, 4.46), ("swin_tiny_patch4_window7_224", 28.29, 4.49)]
)
def test_models_of_timm_cost_what_their_papers_say(name: str, params: float, gmacs: float) -> None:
    counted = cost(name)
    assert counted.params / 1e6 == pytest.approx(params, abs=0.01)
    assert counted.macs / 1e9 == pytest.approx(gmacs, abs=0.01)


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(ModelNotFoundError, match="did you mean 'resnet50'"):
        cost("resnet5O")
