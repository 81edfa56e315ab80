"""What can't be explained is refused, and the message names the thing and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

import fullfield
from fullfield.errors import CheckpointError, ConfigError, ImageError, MissingExtraError, ModelNotFoundError
from fullfield.measure import cam_targets
from fullfield.measure.cam import cam


class Net(nn.Module):
    def __init__(self, *between: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.between = nn.Sequential(*between)
        self.classify = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.between(self.conv(x)).mean(dim=(2, 3)))


IMAGE = torch.randn(3, 16, 16)
NAMES = ("monocyte", "lymphocyte", "basophil")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"method": "gradcam"}, "unknown method 'gradcam': it is one of grad-cam, .*did you mean 'grad-cam'"),
        ({"layer": "covn"}, "no layer 'covn'; did you mean 'conv'.*erf MODEL --list-layers` prints them all"),
        ({"layer": "classify"}, r"'classify' has the shape \(1, 3\), which is no map;.*--list-layers"),
        ({"target": "monocytes", "classes": NAMES}, "no class 'monocytes'; did you mean 'monocyte'"),
        ({"target": "xyz", "classes": NAMES}, "no class 'xyz'; its first are 'monocyte', 'lymphocyte', 'basophil'"),
        ({"target": "monocyte"}, "no class 'monocyte'; give its index"),
        ({"target": 3}, "the model has classes 0 to 2, got 3"),
        ({"target": -1}, "the model has classes 0 to 2, got -1"),
        ({"steps": -1}, "steps must be at least 1, or 0 for no scores, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"image_size": 32}, "the image is a tensor of 16 x 16 pixels: resize it yourself"),
        ({"image": torch.randn(2, 3, 16, 16)}, r"must be a floating-point tensor .*\(2, 3, 16, 16\).* one by one"),
        ({"image": torch.zeros(3, 16, 16, dtype=torch.uint8)}, "got torch.uint8"),
        ({"image": torch.zeros(3, 0, 16)}, r"of shape \(3, 0, 16\)"),
        ({"image": torch.randn(5, 16, 16)}, "Net can't take an image of 16 x 16 pixels and 5 channels"),
    ],
)
def test_what_is_impossible_is_named(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        cam(Net(), **{"image": IMAGE, **arguments})


def test_a_damaged_or_missing_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    for name in ("broken.jpg", "nowhere.jpg"):
        with pytest.raises(ImageError, match=name):
            cam(Net(), tmp_path / name)


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(ModelNotFoundError, match="did you mean 'racnn_pico'"):
        cam("racnn_picco", IMAGE, device="cpu")


# --- no map ---


class Rows(nn.Module):
    """Sees no image, but a row of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Linear(3 * 16 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(x.flatten(1))


class Twice(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_models_and_layers_without_a_map_are_refused() -> None:
    with pytest.raises(ConfigError, match="Rows has no layer with a map of more than one unit at 16 x 16 pixels"):
        cam(Rows(), IMAGE)
    unused = Net()
    unused.spare = nn.Conv2d(3, 4, 1)
    with pytest.raises(ConfigError, match="'spare' does not run in the forward pass"):
        cam(unused, IMAGE, layer="spare")


def test_images_smaller_than_the_stride_are_refused() -> None:
    model = timm.create_model("resnet18", num_classes=3)
    with pytest.raises(ConfigError, match=r"map of 'layer4' has a single unit: images of 32 x 32 .*larger image_size"):
        cam(model, torch.randn(3, 32, 32), layer="layer4")
    assert cam(model, torch.randn(3, 32, 32), steps=0).layer == "layer3"  # the last that still has a place
    patches = timm.create_model("vit_tiny_patch16_224", depth=1)
    with pytest.raises(ConfigError, match=r"VisionTransformer can't take an image of 64 x 64 pixels"):
        cam(patches, torch.randn(3, 64, 64))


def test_a_layer_that_the_answer_does_not_depend_on_is_refused() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=3)
    with pytest.raises(ConfigError, match=r"does not depend on the map of 'blocks.1'.*class token"):
        cam(model, torch.randn(3, 224, 224), layer="blocks.1")


def test_a_layer_with_several_outputs_asks_which() -> None:
    class Pair(Net):
        def forward(self, x: Tensor) -> Tensor:
            first, second = self.pair(self.conv(x))
            return self.classify((first + second).mean(dim=(2, 3)))

    model = Pair()
    model.pair = Twice()
    with pytest.raises(ConfigError, match=r"'pair' does not return one tensor; add \[0\]"):
        cam(model, IMAGE, layer="pair")


# --- outputs of other kinds ---


class Returns(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.conv, self.make = nn.Conv2d(3, 4, 1), make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.conv(x))


def nothing(x: Tensor) -> list[dict[str, Tensor]]:
    empty = x.new_zeros(0)
    return [{"boxes": x.new_zeros(0, 4), "labels": empty.long(), "scores": empty}]


def one_box(x: Tensor) -> list[dict[str, Tensor]]:
    score = x.mean().sigmoid()[None]
    return [{"boxes": x.new_tensor([[1.0, 2, 9, 8]]), "labels": torch.tensor([2]), "scores": score}]


@pytest.mark.parametrize(
    ("make", "arguments", "says"),
    [
        (lambda x: x.mean(dim=(1, 2, 3)), {}, r"returns a tensor \(1,\), which is neither logits.* wrap the model"),
        (lambda _: "cat", {}, "returns str, which is neither"),
        (lambda x: 0 * x[:, :1] - 1, {}, "marks no pixel of this image as foreground"),
        (nothing, {}, "detects nothing in this image"),
        (one_box, {"target": 1}, "detects no 'class 1' in this image; it finds class 2"),
    ],
)
def test_what_has_nothing_to_explain_says_so(make: Any, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        cam(Returns(make), IMAGE, **arguments)


# --- numbers that are not finite, memory, missing libraries ---


class Overflow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / torch.zeros((), dtype=x.dtype)


class Root(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (0 * x).sqrt()


def test_the_first_layer_that_is_not_finite_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"output of between.0 \(Overflow\) is not finite, the first such"):
        cam(Net(Overflow(), nn.ReLU()), IMAGE)
    weights = Net(nn.BatchNorm2d(4))
    weights.between[0].running_var.fill_(torch.nan)
    with pytest.raises(CheckpointError, match=r"output of between.0 \(BatchNorm2d\)"):
        cam(weights, IMAGE, layer="conv")
    with pytest.raises(CheckpointError, match="the image has values that are not finite"):
        cam(Net(), IMAGE * torch.nan)


def test_a_gradient_that_is_not_finite_is_told() -> None:
    with pytest.raises(CheckpointError, match=r"gradient at conv is not finite"):
        cam(Net(Root()), IMAGE, layer="conv")


def test_too_little_memory_for_one_image_is_told() -> None:
    class Greedy(Net):
        def forward(self, x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ConfigError, match=r"memory does not suffice .* 16 x 16 pixels; use a smaller image_size"):
        cam(Greedy(), IMAGE)


def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(cam_targets, "import_module", fail)
    with pytest.raises(MissingExtraError, match=r"pip install 'fullfield\[look\]'"):
        cam(Net(), IMAGE)


def test_channels_other_than_three_are_drawn_in_grey() -> None:
    model = fullfield.create_model("racnn_pico", dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), in_chans=1, num_classes=3)
    result = cam(model, Image.new("RGB", (64, 64), "red"), image_size=64, steps=0)
    assert result.image.shape == (64, 64, 3)
    assert (result.image[..., 0] == result.image[..., 2]).all()
