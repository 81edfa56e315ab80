"""What cannot be measured is refused, and the message names the thing and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import fullfield
from fullfield.errors import CheckpointError, ConfigError, DataError, FullfieldError, ImageError, ModelNotFoundError
from fullfield.measure.erf import erf

RESNET: Any = {"block_args": {}, "layers": (1, 1, 1, 1)}


def net(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *layers, nn.Conv2d(4, 4, 3, padding=1))


torch.manual_seed(0)  # some random images leave a unit dead, which is another error
IMAGES = torch.randn(1, 3, 16, 16)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"layer": "layr4"}, "no layer 'layr4'"),
        ({"layer": "output", "position": (16, 3)}, r"\(16, 3\) lies outside the map of 'output', which has 16 x 16"),
        ({"layer": "output", "position": (-1, 3)}, "rows 0 to 15"),
        ({"layer": "output", "channels": 4}, "'output' has channels 0 to 3, got 4"),
        ({"layer": "output", "channels": "mean"}, "unknown channels 'mean': it is one of signs, relu, sum"),
        ({"layer": "output", "gradient": "abs"}, "unknown gradient 'abs'"),
        ({"layer": "output", "gradient": "signed"}, "averages to nothing over random signs; set channels='sum'"),
        ({"layer": "output", "preset": "replnet"}, "unknown preset 'replnet'.*did you mean 'replknet'"),
        ({"layer": "output", "preset": "replknet", "gradient": "signed"}, "fixes channels and gradient"),
        ({"layer": "output", "preset": "replknet", "position": (1, 1)}, "replknet is for the centre"),
        ({"layer": "output", "batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"layer": "output", "count": 0}, "count must be at least 1, got 0"),
        ({"layer": "output", "image_size": 0}, "image_size must be at least 1 pixel, got 0"),
        ({"layer": "output", "image_size": 32}, "tensors of 16 x 16 pixels: resize them yourself"),
        ({"layer": "output", "objects": np.zeros((1, 8, 8), dtype=bool)}, r"masks \(1, 16, 16\) or boxes \(1, 4\)"),
        ({"layer": "output", "images": torch.zeros(3, 16, 16)}, r"tensor \(N, 3, H, W\), got .* shape \(3, 16, 16\)"),
        ({"layer": "output", "images": torch.zeros(1, 3, 16, 16, dtype=torch.uint8)}, "floating-point tensor.*uint8"),
        (
            {"layer": "output", "images": torch.zeros(1, 5, 16, 16)},
            "can't take images of 16 x 16 pixels and 5 channels",
        ),
        ({"layer": "output", "preset": "replknet", "images": torch.randn(1, 3, 16, 20)}, "square images, got 16 x 20"),
        ({"layer": "output", "device": "warp", "model": "resnet18"}, "'warp'"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_impossible_arguments_are_refused(arguments: dict[str, Any], says: str) -> None:
    torch.manual_seed(0)  # some random nets are dead at the unit, which is another error
    with pytest.raises(ConfigError, match=says):
        erf(**{"model": net(), "images": IMAGES, **arguments})


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ({"model": "resnet_18"}, ModelNotFoundError, "did you mean 'resnet18'"),
        ({"model": "runs/nowhere"}, CheckpointError, "no checkpoint or run folder runs/nowhere"),
        ({"images": "nowhere"}, DataError, "there is no image nowhere"),
        ({"images": "sample:blood_cels"}, DataError, "'blood_cells'"),
    ],
)
def test_what_is_not_there_is_named(arguments: dict[str, Any], kind: type[FullfieldError], says: str) -> None:
    with pytest.raises(kind, match=says):
        erf(**{"model": net(), "layer": "output", **arguments})


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        erf(net(), tmp_path, "output")


def test_images_smaller_than_the_stride_are_refused() -> None:
    model = fullfield.create_model("racnn_pico", dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
    with pytest.raises(ConfigError, match=r"16 x 16 pixels are smaller than the stride of 'stages.3', 32 pixels"):
        erf(model, None, image_size=16)
    patches = nn.Sequential(nn.Conv2d(3, 4, 32, 32), nn.ReLU())
    with pytest.raises(ConfigError, match=r"can't take images of 16 x 16 pixels .*Kernel size can't be greater"):
        erf(patches, None, "1", image_size=16)


def test_a_fixed_size_is_told_by_the_model_itself() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=1)
    with pytest.raises(ConfigError, match=r"VisionTransformer can't take images of 64 x 64 pixels.*\(224\)"):
        erf(model, None, image_size=64)


# --- models whose output does not depend on the image ---


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.value.expand(x.shape)


class Zeroed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0 * x


class Parent(nn.Module):
    """Cuts between its own children."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.before(x).detach())


class Dead(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(4, 4, 1)
        nn.init.zeros_(self.weight)


@pytest.mark.parametrize(
    ("cut", "named"),
    [
        (Detached(), "1 (Detached)"),
        (Constant(), "1 (Constant)"),
        (Zeroed(), "1 (Zeroed)"),
        (Dead(), "1 (Dead)"),
        (Parent(), "1 (Parent)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_the_layer_that_cuts_the_gradient_is_named(cut: nn.Module, named: str) -> None:
    with pytest.raises(ConfigError, match="does not depend on the image at") as caught:
        erf(net(cut), IMAGES, "2")
    assert f"ends at {named}" in str(caught.value)


def test_a_unit_whose_channels_are_all_negative_has_no_published_field() -> None:
    model = net()
    nn.init.constant_(model[1].bias, -1e3)
    with pytest.raises(ConfigError, match="ends at the unit itself, whose channels are all negative there"):
        erf(model, IMAGES, "1", preset="replknet")


# --- numbers that are not finite ---


class Overflow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / torch.zeros((), dtype=x.dtype)


def test_the_first_layer_that_is_not_finite_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"output of 1 \(Overflow\) is not finite, the first such layer"):
        erf(net(Overflow(), nn.ReLU()), IMAGES, "3")
    weights = net(nn.BatchNorm2d(4))
    weights[1].running_var.fill_(torch.nan)
    with pytest.raises(CheckpointError, match=r"output of 1 \(BatchNorm2d\) is not finite"):
        erf(weights, IMAGES, "2")
    with pytest.raises(CheckpointError, match="an image has values that are not finite"):
        erf(net(), IMAGES * torch.nan, "1")


def test_a_gradient_that_is_not_finite_is_told() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (0 * x).sqrt()

    with pytest.raises(CheckpointError, match=r"gradient from '2' to the image is not finite.*torch\.float32"):
        erf(net(Root()), IMAGES, "2")
