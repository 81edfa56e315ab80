"""Fields whose truth is known: composed kernels of linear nets, lattices of RPWConv, and bounds by theory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import fullfield
from fullfield.layers import RegionPWConv
from fullfield.measure.erf import erf, erf_of_layers, erf_of_stages
from fullfield.measure.erf_fixed_weights import fixed_region_weights
from fullfield.measure.erf_statistics import half_mass_radius, smallest_square
from fullfield.measure.feature_maps import frozen

TINY: dict[str, Any] = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}
SMALL_NET = partial(fullfield.create_model, "racnn_pico", **TINY)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- linear nets: the field is the composed kernel ---


def composed_kernel(convs: Sequence[nn.Conv2d]) -> np.ndarray:
    """Return (c, C, k, k): which input offsets each output channel sums, by convolving kernels as polynomials."""
    total = np.eye(convs[0].in_channels)[:, :, None, None]
    stride = 1
    for conv in convs:
        weight = conv.weight.detach().numpy()
        k, d = weight.shape[2], conv.dilation[0] * stride
        side = total.shape[2] + (k - 1) * d
        wider = np.zeros((weight.shape[0], total.shape[1], side, side))
        for i in range(k):
            for j in range(k):
                part = np.einsum("om,mcyx->ocyx", weight[:, :, i, j], total)
                wider[:, :, i * d : i * d + total.shape[2], j * d : j * d + total.shape[3]] += part
        total, stride = wider, stride * conv.stride[0]
    return total


LINEAR = {
    "one": [nn.Conv2d(3, 4, 5, padding=2, bias=False)],
    "three": [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(5, 2, 3, padding=1)],
    "strided": [nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, padding=1)],
    "dilated": [nn.Conv2d(3, 4, 3, padding=2, dilation=2), nn.Conv2d(4, 4, 5, 2, 2)],
}


@pytest.mark.parametrize("channels", [1, "sum"])
@pytest.mark.parametrize("gradient", ["absolute", "positive", "signed"])
@pytest.mark.parametrize("name", LINEAR)
def test_field_of_a_linear_net_is_its_composed_kernel(name: str, gradient: str, channels: str | int) -> None:
    model = nn.Sequential(*LINEAR[name]).double()
    result = erf(model, noise(3, 3, 48, 48), "output", channels=channels, gradient=gradient)
    kernel = composed_kernel(LINEAR[name])
    kernel = kernel.sum(axis=0) if channels == "sum" else kernel[channels]
    part = {"absolute": np.abs, "positive": lambda k: np.maximum(k, 0), "signed": lambda k: k}[gradient](kernel)
    expected = np.zeros((48, 48))
    window = result.theory.window(result.position, (48, 48))
    assert window is not None
    top, left, bottom, right = window
    expected[top:bottom, left:right] = part.sum(axis=0)
    np.testing.assert_allclose(result.map, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert result.centre == ((top + bottom - 1) // 2, (left + right - 1) // 2)
    assert not any(error > 1e-12 for error in result.errors.values())  # all images agree


def test_random_signs_average_to_the_root_mean_square_over_channels() -> None:
    conv = nn.Conv2d(1, 64, 5, padding=2, bias=False).double()
    result = erf(conv, noise(400, 1, 9, 9), "output", count=400, batch_size=100)
    rms = conv.weight.detach().square().sum(dim=(0, 1)).sqrt().numpy()
    mean_magnitude = np.sqrt(2 / np.pi)  # of a normal number, which a sum of 64 signed ones nearly is
    np.testing.assert_allclose(result.map[2:7, 2:7], mean_magnitude * rms, rtol=0.15)  # deviation 0.76 / sqrt(400)


def test_a_sum_of_normalised_channels_would_see_nothing_and_signs_do() -> None:
    class Normalised(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.layer_norm(x.permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2)

    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Normalised()).double()
    images = noise(2, 3, 16, 16)
    by_sum, by_signs = (erf(model, images, "1", channels=channels).map.sum() for channels in ("sum", "signs"))
    assert by_sum < 1e-6 * by_signs


@pytest.mark.parametrize("position", [(0, 0), (3, 1), (7, 7)], ids=str)
def test_any_unit_has_the_field_that_autograd_gives_it(position: tuple[int, int]) -> None:
    model = SMALL_NET().double().eval()
    images = noise(2, 3, 64, 64)
    result = erf(model, images, "stages.1", position, channels=3)
    x = images.clone().requires_grad_(True)
    with frozen(model):
        unit = model.stages[1](model.stages[0](model.stem(x)))[:, 3, position[0], position[1]]
    (grad,) = torch.autograd.grad(unit.sum(), x)
    np.testing.assert_allclose(result.map, grad.abs().sum(dim=1).mean(dim=0).numpy(), rtol=1e-9, atol=1e-15)
    assert result.centre == (8 * position[0], 8 * position[1])  # 3x3 of stride 2, padding 1, three times


# --- bounds ---


@pytest.mark.parametrize(
    ("build", "layer"),
    [
        (lambda: timm.create_model("resnet18", zero_init_last=False), "layer1"),
        (lambda: timm.create_model("convnext_atto", depths=(1, 1, 1, 1), ls_init_value=None), "stages.1"),
        (lambda: timm.create_model("densenet121", block_config=(2, 2), growth_rate=8), "features.denseblock2"),
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.MaxPool2d(3, 1, 1)), "2"),
    ],
    ids=["resnet", "convnext", "densenet", "pooled"],
)
def test_theory_bounds_the_field_and_the_field_fills_most_of_it(build: Any, layer: str) -> None:
    result = erf(build(), noise(2, 3, 96, 96).float(), layer)
    window = result.theory.window(result.position, (96, 96))
    assert window is not None
    top, left, bottom, right = window
    inside = result.map[top:bottom, left:right] > 0
    assert inside.sum() == (result.map > 0).sum()
    assert inside.mean() > 0.3


def test_attention_nets_are_measured_and_their_field_is_found_by_experiment() -> None:
    swin = {"depths": (1, 1, 1, 1), "embed_dim": 24, "img_size": 64, "window_size": 2}
    result = erf(timm.create_model("swin_tiny_patch4_window7_224", **swin), noise(1, 3, 64, 64).float(), "layers.0")
    assert result.bound == "8×8 px (probed)"  # a window of 2 x 2 patches of 4 pixels
    assert result.support == 64 / 4096
    vit = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=64)
    result = erf(vit, noise(1, 3, 64, 64).float())
    assert (result.bound, result.support) == ("the whole image (probed)", 1.0)
    assert result.centre == (40, 40)  # unit (2, 2) of 4 x 4 patches of 16 pixels: the middle of pixels 32 to 47


def test_dense_models_and_squeeze_and_excite_are_measured() -> None:
    dense = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    result = erf(dense, noise(1, 3, 64, 64).float(), position=(10, 50))
    assert (result.layer, result.map_size, result.position) == ("output[out]", (64, 64), (10, 50))
    result = erf("mobilenetv3_small_050", count=1, image_size=64, layer="blocks.0", device="cpu")
    assert result.support == 1.0
    assert "global (mean in blocks.0.0.se" in result.bound


# --- RaCNN: sparse, through its weights ---


def chain(threes: int, heads: int = 1) -> nn.Sequential:
    """RPWConv and so many 3x3 convolutions after it, float64."""
    torch.manual_seed(0)
    convs = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(threes)]
    return nn.Sequential(RegionPWConv(8, region_size=7, heads=heads), *convs).double()


@pytest.mark.parametrize(("threes", "filled"), [(0, 1), (1, 9), (2, 25), (3, 49)])
def test_one_rpwconv_sees_a_lattice_that_three_convolutions_fill(threes: int, filled: int) -> None:
    result = erf(chain(threes), noise(4, 8, 49, 49), "output", (24, 24))
    assert result.support == filled / 49
    if not threes:
        rows, columns = np.nonzero(result.map)
        assert set(rows % 7) == set(columns % 7) == {24 % 7}
    assert "RegionPWConv" in result.bound


@pytest.mark.parametrize(("threes", "side"), [(0, 1), (1, 3), (3, 7)])
@pytest.mark.parametrize("similarity", ["cosine", "inner"])
def test_with_fixed_weights_the_tail_is_gone_and_outputs_stay(threes: int, side: int, similarity: str) -> None:
    model, images = chain(threes, heads=2), noise(2, 8, 25, 31)
    model[0].similarity = similarity
    expected = model(images)
    with fixed_region_weights(model):
        torch.testing.assert_close(model(images), expected, rtol=1e-9, atol=1e-12)
        result = erf(model, images, "output", (12, 12))
    half = side // 2
    assert (result.map[12 - half : 13 + half, 12 - half : 13 + half] > 0).all()
    assert (result.map > 0).sum() == side**2
    assert result.bound == f"{side}×{side} px"
    assert torch.equal(model(images), expected)
    assert not model[0]._forward_hooks


def test_of_a_whole_racnn_only_the_convolutions_stay() -> None:
    model, images = SMALL_NET().double().eval(), noise(2, 3, 64, 64)
    expected = model(images)
    seen = [erf(model, images, "stages.0").support]
    with fixed_region_weights(model):
        torch.testing.assert_close(model(images), expected, rtol=1e-9, atol=1e-12)
        held = erf(model, images, "stages.0")
    seen.append(held.support)
    side = 1 + 2 * 1 + 2 * 2 + 2 * 4 * 2  # two 3x3 of stride 2, two depthwise 3x3 at stride 4
    assert seen[0] > 0.9
    assert seen[1] == side**2 / 64**2
    assert (held.bound, held.centre) == (f"{side}×{side} px", (32, 32))


# --- several images ---


def test_batch_size_changes_nothing_and_the_model_is_left_as_it_was() -> None:
    model = SMALL_NET().train()
    model.head.fc.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    one, three = (erf(model, None, image_size=64, count=4, batch_size=size) for size in (1, 3))
    np.testing.assert_allclose(one.map, three.map, rtol=1e-3, atol=1e-6 * one.map.max())
    assert one.squares == three.squares
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("count", [3, 13])
def test_errors_are_the_jackknife_over_groups_of_images(count: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.GELU(), nn.Conv2d(8, 4, 5, padding=2)).double()
    images = noise(count, 3, 24, 24)
    result = erf(model, images, "output", channels="sum")
    maps = [erf(model, images[i : i + 1], "output", channels="sum").map for i in range(count)]
    np.testing.assert_allclose(result.map, np.mean(maps, axis=0), rtol=1e-9)
    groups = min(10, count)
    left_out = [np.mean([m for i, m in enumerate(maps) if i % 10 != g], axis=0) for g in range(groups)]
    for name, number in {
        "half_mass_radius": half_mass_radius,
        "area_ratio 0.5": lambda m, centre: smallest_square(m, centre, 0.5).ratio,
    }.items():
        values = np.array([number(m, result.centre) for m in left_out])
        variance = (groups - 1) / groups * ((values - values.mean()) ** 2).sum()
        assert result.errors[name] == pytest.approx(np.sqrt(variance), abs=1e-12)
    assert erf(model, images[:1], "output").errors == {}


def test_mass_outside_objects_is_averaged_over_images() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 9, padding=4), nn.GELU(), nn.Conv2d(8, 4, 1)).double()
    images = noise(3, 3, 20, 24)
    boxes = [(8.0, 6.0, 16.0, 14.0), (0.0, 0.0, 24.0, 20.0), (11.0, 9.0, 12.0, 10.0)]
    masks = np.zeros((3, 20, 24), dtype=bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[int(top) : int(bottom), int(left) : int(right)] = True
    shares = []
    for index in range(3):
        m = erf(model, images[index : index + 1], "output", channels="sum").map
        shares.append(1 - m[masks[index]].sum() / m.sum())
    for objects in (boxes, masks, torch.from_numpy(masks)):
        result = erf(model, images, "output", channels="sum", objects=objects)
        assert result.outside == pytest.approx(np.mean(shares))
        assert result.errors["outside"] == pytest.approx(np.std(shares, ddof=1) / np.sqrt(3))


def test_all_stages_and_named_layers_come_in_order() -> None:
    model = SMALL_NET()
    results = erf_of_stages(model, count=1, image_size=64)
    assert [r.layer for r in results] == [f"stages.{i}" for i in range(4)]
    assert [r.map_size for r in results] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    named = erf_of_layers(model, None, ["stages.2", ""], count=1, image_size=64)
    assert [r.layer for r in named] == ["stages.2", "stages.3"]
    np.testing.assert_array_equal(named[0].map, results[2].map)
