"""Feature maps of every layout by name: convolutional, channels last, tokens, several outputs, dense."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import fullfield
from fullfield.errors import ConfigError
from fullfield.measure.feature_maps import as_map, feature_map, frozen, last_layer, list_feature_maps, stage_layers

TINY = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}


def test_maps_are_those_of_timms_own_contract() -> None:
    model = fullfield.create_model("racnn_pico", **TINY).eval()
    images = torch.randn(2, 3, 64, 96)
    layers = stage_layers(model, images)
    assert layers == [f"stages.{i}" for i in range(4)]
    assert last_layer(model, images) == "stages.3"
    for layer, expected in zip(layers, model.forward_intermediates(images, intermediates_only=True), strict=True):
        assert torch.equal(feature_map(model, layer, images), expected)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {"depth": 2, "img_size": (64, 96)}),
        ("deit_tiny_distilled_patch16_224", {"depth": 2, "img_size": (64, 96)}),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24, "img_size": (64, 96)}),
    ],
    ids=["tokens", "two prefix tokens", "channels last"],
)
def test_maps_of_attention_nets_have_channels_first(name: str, arguments: dict[str, object]) -> None:
    model = timm.create_model(name, **arguments).eval()
    images = torch.randn(1, 3, 64, 96)
    layer = last_layer(model, images)
    expected = model.forward_intermediates(images, norm=False, intermediates_only=True)[-1]
    assert torch.equal(feature_map(model, layer, images), expected)


def test_a_dense_model_ends_in_its_output_and_a_classifier_before_its_pooling() -> None:
    dense = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    images = torch.randn(1, 3, 64, 64)
    layer = last_layer(dense, images)
    assert layer == "output[out]"
    assert feature_map(dense, layer, images).shape == (1, 21, 64, 64)
    plain = torchvision.models.resnet18(weights=None).eval()
    assert last_layer(plain, images) == "layer4"
    assert stage_layers(plain, images) == ["relu", "layer1", "layer2", "layer3", "layer4"]


def test_several_outputs_have_a_name_each() -> None:
    class Pyramid(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x, x[:, :, ::2, ::2]]

    images = torch.randn(1, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Pyramid())
    found = {entry.layer: entry.size for entry in list_feature_maps(model, images)}
    assert found == {"0": (8, 8), "1[0]": (8, 8), "1[1]": (4, 4), "output[0]": (8, 8), "output[1]": (4, 4)}
    assert feature_map(model, "1[1]", images).shape == (1, 4, 4, 4)
    with pytest.raises(ConfigError, match=r"does not return one tensor; it returns '1\[0\]', '1\[1\]'"):
        feature_map(model, "1", images)


@pytest.mark.parametrize(
    ("shape", "image", "prefix", "expected"),
    [
        ((2, 8, 7, 7), (224, 224), 0, (2, 8, 7, 7)),
        ((2, 7, 7, 8), (224, 224), 0, (2, 8, 7, 7)),
        ((2, 8, 3, 5), (33, 64), 0, (2, 8, 3, 5)),
        ((2, 197, 8), (224, 224), 1, (2, 8, 14, 14)),
        ((2, 24, 8), (64, 96), 0, (2, 8, 4, 6)),
        ((2, 196, 8), (224, 224), 1, None),
        ((2, 8), (224, 224), 0, None),
        ((2, 8, 300, 300), (224, 224), 0, None),
    ],
    ids=str,
)
def test_a_map_is_known_by_the_aspect_of_its_image(
    shape: tuple[int, ...], image: tuple[int, int], prefix: int, expected: tuple[int, ...] | None
) -> None:
    found = as_map(torch.randn(shape), image, prefix_tokens=prefix)
    assert (None if found is None else tuple(found.shape)) == expected


def test_the_pass_ends_at_the_layer() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("ran")

    model = nn.Sequential(nn.Conv2d(3, 4, 1), Fails())
    assert feature_map(model, "0", torch.randn(1, 3, 4, 4)).shape == (1, 4, 4, 4)
    assert not model[0]._forward_hooks


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        ("2", r"output of '2' has the shape \(1, 5\), which is no map"),
        ("3", "'3' does not run"),
        ("conv", r"no layer 'conv';"),
    ],
)
def test_layers_without_a_map_are_refused(layer: str, says: str) -> None:
    class Partly(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[2](self[1](self[0](x)))

    model = Partly(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 5), nn.Linear(5, 5))
    with pytest.raises(ConfigError, match=says):
        feature_map(model, layer, torch.randn(1, 3, 8, 8))


def test_a_model_without_a_map_and_a_size_that_it_cannot_take_are_refused() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    with pytest.raises(ConfigError, match="Sequential has no layer with a map of units at 8 x 8 pixels"):
        last_layer(flat, torch.randn(1, 3, 8, 8))
    for look in (list_feature_maps, lambda m, x: feature_map(m, "1", x)):
        with pytest.raises(ConfigError, match=r"can't take images of 9 x 9 pixels and 3 channels \(.*mat1 and mat2"):
            look(flat, torch.randn(1, 3, 9, 9))


def test_a_frozen_model_comes_back_as_it_was_even_after_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model[0].eval()
    model[0].bias.requires_grad_(False)
    with pytest.raises(ZeroDivisionError), frozen(model):  # noqa: PT012
        assert not any(p.requires_grad for p in model.parameters())
        assert not any(m.training for m in model.modules())
        raise ZeroDivisionError
    assert [m.training for m in model.modules()] == [True, False, True]
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
