"""The preset `replknet` against the published procedure, written here a second time from the authors' description.

Source: Ding et al., "Scaling Up Your Kernels to 31x31", CVPR 2022, and the scripts in the folder `erf` of the authors'
repository: images squeezed to a square (bicubic), normalised by ImageNet's mean and deviation; of the last map the
centre's positive channels summed; the positive part of the gradient summed over RGB; the mean over the images; log10 of
1 + that, over its maximum; squares around the centre that grow until they hold more than t of the sum.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torchvision import datasets, transforms

import fullfield
from fullfield.data import sample_path
from fullfield.measure.erf import PRESETS, erf
from fullfield.measure.erf_model import weights_of
from tests.images import finished, photos

__all__ = ["finished", "photos"]

MODELS: dict[str, dict[str, Any]] = {
    "resnet50": {"zero_init_last": False},
    "convnext_tiny": {"ls_init_value": 0.5},
}
DTYPES = {"resnet50": torch.float64, "convnext_tiny": torch.float32}  # in float32 rounding decides some ReLUs
SHARES = (0.2, 0.3, 0.5, 0.99)


def published_scores(model: Any, folder: Path, side: int, count: int) -> np.ndarray:
    """Return the mean contribution of every pixel, (side, side)."""
    transform = transforms.Compose(
        [
            transforms.Resize((side, side), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    model.eval()
    dtype = next(model.parameters()).dtype
    total = np.zeros((side, side))
    data = datasets.ImageFolder(folder, transform)
    for index in range(count):
        x = data[index][0].unsqueeze(0).to(dtype).requires_grad_(True)
        y = model.forward_features(x)
        y[:, :, y.shape[2] // 2, y.shape[3] // 2].clamp(min=0).sum().backward()
        assert x.grad is not None
        total += x.grad.clamp(min=0)[0].sum(dim=0).numpy()
    return total / count


def published_squares(scores: np.ndarray) -> dict[float, tuple[int, float]]:
    """Return t -> side and share of the area of the square."""
    z = np.log10(scores + 1)
    z /= z.max()
    side, middle = len(z), len(z) // 2
    squares = {}
    for share in SHARES:
        half = 1
        while z[middle - half : middle + half + 1, middle - half : middle + half + 1].sum() <= share * z.sum():
            half += 1
            assert half < middle, "the authors' script finds no square"
        squares[share] = (2 * half + 1, ((2 * half + 1) / side) ** 2)
    return squares


def check(model: nn.Module, folder: Path, side: int, count: int) -> None:
    model.requires_grad_(False)
    # one image at a time, as the script does
    result = erf(model, folder, preset="replknet", image_size=side, count=count, batch_size=1)
    scores = published_scores(model, folder, side, count)
    np.testing.assert_allclose(result.map, scores, rtol=1e-4, atol=1e-4 * scores.max())
    expected = published_squares(scores)
    for share, (length, ratio) in expected.items():
        assert result.area_ratio[share] == pytest.approx(ratio, abs=1e-4), share
        assert result.squares[share].height == length
    assert expected[0.99][1] > 2 * expected[0.2][1]  # not a degenerate field


def fresh(name: str) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **MODELS[name]).to(DTYPES[name])


CELLS = sample_path("blood_cells") / "test"


@pytest.mark.parametrize("name", MODELS)
def test_preset_is_the_published_procedure(name: str) -> None:
    check(fresh(name), CELLS, side=256, count=1 if name == "resnet50" else 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_preset_is_the_published_procedure_at_its_own_size(name: str) -> None:
    check(fresh(name), CELLS, side=1024, count=2)


# --- trained weights: a minute's training at most, here; an official checkpoint takes the same path ---


def learn_cells(model: nn.Module, steps: int) -> list[float]:
    """Train on the sample's photographs at 64 pixels, and return the loss of every step."""
    transform = transforms.Compose([transforms.Resize((64, 64)), transforms.ToTensor()])
    data = datasets.ImageFolder(sample_path("blood_cells") / "train", transform)
    picked = torch.utils.data.Subset(data, range(0, len(data), max(1, len(data) // 24)))
    images = torch.stack([picked[i][0] for i in range(len(picked))])
    labels = torch.tensor([picked[i][1] for i in range(len(picked))])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    model.train()
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def trained(name: str, steps: int) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3)
    start = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    losses = learn_cells(model, steps)
    assert losses[-1] < 0.5 * losses[0]
    assert all(not torch.equal(tensor, start[key]) for key, tensor in model.named_parameters())
    assert weights_of(model) == "trained"
    return model.double()


def test_preset_is_the_published_procedure_for_trained_weights() -> None:
    check(trained("resnet10t", steps=12), CELLS, side=128, count=2)


def test_preset_is_the_published_procedure_for_a_run_of_ours(finished: Path, photos: Path) -> None:
    model = fullfield.load(finished).double()
    assert weights_of(model) == "trained"
    check(model, photos, side=64, count=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
def test_preset_is_the_published_procedure_for_trained_weights_at_its_own_size(name: str) -> None:
    check(trained(name, steps=100), CELLS, side=1024, count=2)


def test_preset_is_as_published_unless_told_otherwise() -> None:
    preset = PRESETS["replknet"]
    assert (preset.image_size, preset.count, preset.channels, preset.gradient) == (1024, 50, "relu", "positive")


def test_preset_takes_the_first_images_whole_and_ours_takes_some_of_all(tmp_path: Path) -> None:
    for number in range(8):
        shade = 30 * number
        Image.new("RGB", (40, 20), (shade, shade, shade)).save(tmp_path / f"{number}.png")

    class Shades(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 1, 1)
            self.seen: list[int] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += (30 * ((x[:, 0, 8, 8] * 0.229 + 0.485) * 255 / 30).round()).int().tolist()
            return self.conv(x).abs()

    for preset, expected in (("replknet", {0, 30, 60, 90}), ("fullfield", {0, 60, 120, 180})):
        model = Shades()
        result = erf(model, tmp_path, "output", preset=preset, image_size=16, count=4)
        assert set(model.seen) == expected
        assert result.images == f"4 images of {tmp_path.name}"
