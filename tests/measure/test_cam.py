"""Class-activation maps: the formulas of the papers, the place on the image, and a map for every model and task."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn

import fullfield
from fullfield.measure.cam import METHODS, cam
from fullfield.measure.cam_place import resampled
from fullfield.models.peers import PEERS
from tests.contract.zoo import contract_params

TINY: dict[str, Any] = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}


class Small(nn.Module):
    """A classifier whose last map has the image's size, so that nothing is enlarged."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh())
        self.hidden = nn.Linear(6, 5)
        self.classify = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        # not linear after the pooling, and the pooling not plain: gradients differ from place to place
        pooled = (self.features(x) ** 2).mean(dim=(2, 3)) + self.features(x)[:, :, 3, 4]
        return self.classify(self.hidden(pooled).tanh())


def by_the_paper(method: str, activation: Tensor, gradient: Tensor) -> np.ndarray:
    """Return the map of (C, h, w) activations and gradients, written from the papers' equations with loops."""
    C, h, w = activation.shape
    found = torch.zeros(h, w, dtype=torch.float64)
    for y in range(h):
        for x in range(w):
            for c in range(C):
                weight = {
                    "grad-cam": gradient[c].mean(),
                    "hires-cam": gradient[c, y, x],
                    "layer-cam": gradient[c, y, x].clamp(min=0),
                }[method]
                found[y, x] += weight * activation[c, y, x]
    found = found.clamp(min=0)
    return ((found - found.min()) / (found.max() - found.min())).numpy()


@pytest.mark.parametrize("method", ["grad-cam", "hires-cam", "layer-cam"])
@pytest.mark.parametrize("target", [0, 3])
def test_maps_are_the_papers_formulas(method: str, target: int) -> None:
    model = Small().double().eval()
    image = torch.randn(1, 3, 7, 9, dtype=torch.float64)
    kept: list[Tensor] = []
    handle = model.features.register_forward_hook(lambda _m, _i, output: kept.append(output))
    score = model(image)[0, target]
    handle.remove()
    first, _second = kept  # `features` runs twice; the first call is the one that is explained
    (gradient,) = torch.autograd.grad(score, first)
    expected = by_the_paper(method, first[0].detach(), gradient[0])
    result = cam(model, image, method=method, target=target, layer="features", steps=0)
    assert result.map_size == (7, 9)
    assert np.abs(result.map - expected).max() < 1e-5


def test_eigen_cam_is_the_first_principal_component_of_the_units() -> None:
    model = Small().double().eval()
    image = torch.randn(1, 3, 7, 9, dtype=torch.float64)
    units = model.features(image)[0].detach().flatten(1).T.numpy()
    units = units - units.mean(axis=0)
    values, vectors = np.linalg.eigh(units.T @ units)
    component = (units @ vectors[:, values.argmax()]).reshape(7, 9)
    result = cam(model, image, method="eigen-cam", layer="features", steps=0)
    distances = []
    for sign in (1, -1):  # a component's sign is arbitrary
        positive = np.maximum(sign * component, 0)
        distances.append(np.abs(result.map - positive / positive.max()).max())
    assert min(distances) < 1e-5


# --- the place ---


class RedCounter(nn.Module):
    """Class 0 is the share of the channel 0, class 1 a constant; units of 4 x 4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 2, 4, 4, bias=False)
        with torch.no_grad():
            self.patches.weight.zero_()
            self.patches.weight[0, 0] = 1 / 16

    def forward(self, x: Tensor) -> Tensor:
        return self.patches(x).mean(dim=(2, 3))


@pytest.mark.parametrize("method", METHODS)
def test_the_object_that_makes_the_class_is_marked(method: str) -> None:
    image = torch.zeros(3, 48, 64)
    image[0, 8:24, 36:56] = 1.0
    result = cam(RedCounter(), image, method=method, target=0, layer="patches", steps=10)
    inside = image[0].bool().numpy()
    # the library leaves Eigen-CAM's sign to the decomposition
    heat = result.map if result.map[inside].mean() > 0.5 or method != "eigen-cam" else 1 - result.map
    assert result.map_size == (12, 16)
    assert heat[10:22, 38:54].min() > 0.95
    assert heat[28:].max() < 0.05
    assert heat[:, :30].max() < 0.05


class Strided(nn.Module):
    """Three padded convolutions of stride 2 that take every eighth pixel: unit i sees pixel 8 i."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(*[nn.Conv2d(1, 1, 3, 2, 1, bias=False) for _ in range(3)])
        with torch.no_grad():
            for conv in self.stages:
                conv.weight.zero_()[0, 0, 1, 1] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(x).mean(dim=(2, 3))


@pytest.mark.parametrize("place", [(16, 40), (0, 8), (48, 0)])
def test_units_lie_where_they_look(place: tuple[int, int]) -> None:
    image = torch.zeros(1, 64, 64)
    image[0, place[0], place[1]] = 1.0
    result = cam(Strided(), image, target=0, layer="stages", steps=0)
    assert result.map.max() == 1
    rows, columns = np.nonzero(result.map >= 1 - 1e-6)
    assert abs(rows.mean() - place[0]) <= 0.5
    assert abs(columns.mean() - place[1]) <= 0.5


def test_resampling_agrees_with_numpy_s_interpolation() -> None:
    heat = np.random.default_rng(0).random((5, 7)).astype(np.float32)
    rows, columns = np.array([-2.0, 0.25, 3.5, 9.0]), np.array([0.0, 2.75, 6.0, 6.5])
    by_row = np.stack([np.interp(rows, np.arange(5), heat[:, x]) for x in range(7)], axis=1)
    expected = np.stack([np.interp(columns, np.arange(7), row) for row in by_row])
    assert np.abs(resampled(heat, rows, columns) - expected).max() < 1e-6
    assert resampled(heat[:1, :1], rows, columns).shape == (4, 4)


# --- every model ---


@pytest.mark.parametrize("name", contract_params())
def test_a_layer_is_found_in_every_model_of_ours(name: str) -> None:
    model = fullfield.create_model(name, num_classes=7)
    result = cam(model, torch.randn(3, 96, 96), steps=0)
    assert result.layer == "stages.3"
    assert result.map_size == (3, 3)
    assert result.map.shape == (96, 96)
    assert np.isfinite(result.map).all()
    assert result.weights == "random"


@pytest.mark.parametrize(
    ("name", "arguments", "layer"),
    [
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24}, "layers.3"),
        ("vit_tiny_patch16_224", {"depth": 3}, "blocks.1"),  # the class token reads nothing of the last block's patches
        ("vit_tiny_patch16_224", {"depth": 3, "global_pool": "avg", "class_token": False}, "blocks.2"),
        ("resnet18", {}, "layer4"),
    ],
    ids=["channels last", "class token", "tokens", "convolutional"],
)
def test_a_layer_is_found_in_nets_of_other_layouts(name: str, arguments: dict[str, Any], layer: str) -> None:
    side = 224 if "_224" in name else 96
    model = timm.create_model(name, num_classes=7, **arguments)
    result = cam(model, torch.randn(3, side, side), method="hires-cam", steps=0)
    assert result.layer == layer
    units = {"layer4": 3, "layers.3": 7}.get(layer, 14)
    assert result.map_size == (units, units)


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_a_layer_is_found_in_every_peer(name: str) -> None:
    model = fullfield.create_model(name, num_classes=7)
    side = model.pretrained_cfg["input_size"][-1]
    result = cam(model, torch.randn(3, side, side), steps=0)
    assert min(result.map_size) >= side // 32
    assert np.isfinite(result.map).all()


# --- tasks ---


class Dense(nn.Module):
    """Segments an image by its brighter channel, as torchvision's models do: a dictionary of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(2, 3, 1)
        with torch.no_grad():
            self.backbone.weight.zero_()
            self.backbone.bias.copy_(torch.tensor([0.0, 0.0, 0.5]))
            self.backbone.weight[0, 0] = self.backbone.weight[1, 1] = 9.0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": F.interpolate(self.backbone(F.avg_pool2d(x, 2)), scale_factor=2.0)}


def test_a_class_of_a_dense_model_is_explained_over_its_own_pixels() -> None:
    image = torch.zeros(2, 32, 32)
    image[0, 4:12, 4:12], image[1, 16:28, 16:28] = 1.0, 1.0
    largest = cam(Dense(), image, layer="backbone", steps=4)
    assert (largest.task, largest.class_index) == ("segment", 2)
    result = cam(Dense(), image, target="cell", classes=("dust", "cell", "glass"), layer="backbone", steps=4)
    assert (result.class_index, result.class_name) == (1, "cell")
    assert result.confidence == pytest.approx(float(torch.tensor([0.0, 9.0, 0.5]).softmax(0)[1]), abs=1e-6)
    assert result.map[18:26, 18:26].min() > 0.95
    assert result.map[2:14, 2:14].max() < 0.05
    assert result.scores is not None
    assert result.scores.deletion.auc < result.scores.random_deletion.auc


def test_torchvision_s_dense_models_and_detectors_are_explained_in_their_backbone() -> None:
    dense = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    result = cam(dense, torch.randn(3, 64, 96), method="layer-cam", steps=0)
    assert result.task == "segment"
    assert result.layer.startswith("backbone.")
    detector = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3, box_score_thresh=0.0, min_size=96, max_size=128
    )
    result = cam(detector, torch.rand(3, 96, 128), steps=2, orders=1)
    assert result.task == "detect"
    assert result.layer.startswith("backbone.body.")
    assert result.box is not None
    left, top, right, bottom = result.box
    assert 0 <= left < right <= 128
    assert 0 <= top < bottom <= 96
    assert result.scores is not None
    assert result.scores.deletion.confidence[0] == pytest.approx(result.confidence, abs=1e-5)


# --- what goes in and what is left behind ---


def test_a_model_is_left_as_it_was() -> None:
    model = fullfield.create_model("racnn_pico", num_classes=5, **TINY).train()
    model.stem.eval()
    model.head.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: (tensor.clone(), tensor.requires_grad) for name, tensor in model.state_dict(keep_vars=True).items()}
    modes = [module.training for module in model.modules()]
    cam(model, torch.randn(3, 64, 64), steps=2)
    assert [module.training for module in model.modules()] == modes
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert torch.equal(tensor, before[name][0])
        assert tensor.requires_grad == before[name][1]
    assert all(bool((p.grad == 1).all()) for p in model.parameters() if p.grad is not None)
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


def test_pictures_tensors_and_files_give_the_same_map(tmp_path: Any) -> None:
    model = timm.create_model("resnet18", num_classes=4).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100, 3)).astype(np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    by_file = cam(model, tmp_path / "a.png", image_size=96, steps=0)
    by_picture = cam(model, picture, image_size=96, steps=0)
    assert by_file.source.endswith("a.png")
    assert by_picture.source == "a picture"
    assert np.array_equal(by_file.map, by_picture.map)
    mean, std = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    tensor = (torch.from_numpy(by_file.image.copy()).permute(2, 0, 1) / 255 - mean) / std
    by_tensor = cam(model, tensor, steps=0)
    assert np.array_equal(by_tensor.image, by_file.image)
    assert np.abs(by_tensor.map - by_file.map).max() < 0.02  # it was rounded to 8 bits


def test_half_precision_gives_nearly_the_same_map() -> None:
    model, image = RedCounter(), torch.rand(3, 32, 32)
    exact = cam(model, image, target=0, layer="patches", steps=2, orders=1)
    rough = cam(model.bfloat16(), image, target=0, layer="patches", steps=2, orders=1)
    assert np.abs(exact.map - rough.map).max() < 0.05


def test_the_class_of_the_highest_logit_is_explained_unless_one_is_named() -> None:
    model, image = Small().eval(), torch.randn(3, 8, 8)
    likeliest = int(model(image[None]).argmax())
    names = ("ant", "bee", "cat", "dog")
    assert cam(model, image, layer="features", steps=0).class_index == likeliest
    assert cam(model, image, layer="features", target="cat", classes=names, steps=0).class_index == 2
    assert cam(model, image, layer="features", target="3", classes=names, steps=0).class_name == "dog"
