"""Shift consistency: nets whose errors are known exactly, and what random shifts must give on average."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

import fullfield
from fullfield.errors import CheckpointError, ConfigError, DataError, ImageError, MissingExtraError
from fullfield.layers import RegionPWConv
from fullfield.measure.shift import shift
from fullfield.measure.shift_maps import fractional_roll, overlap_error, relative_error, rolled
from fullfield.measure.shift_plot import plot_shifts
from fullfield.measure.shift_result import Estimate, Shift, StageShift
from tests.images import write_photos

TINY: dict[str, Any] = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}
EXACT = 1e-12  # float64


def images(count: int = 3, side: int = 20, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, side, side, dtype=torch.float64)


def only_stage(model: nn.Module, *, side: int = 20, max_shift: int = 4, **arguments: Any) -> StageShift:
    (stage,) = shift(model.double(), images(side=side), ["output"], max_shift=max_shift, **arguments).stages
    return stage


# --- maps whose error is known ---


def test_stride_one_convolutions_that_wrap_around_move_with_the_image() -> None:
    wrap = {"padding": 2, "padding_mode": "circular"}
    stage = only_stage(nn.Sequential(nn.Conv2d(3, 4, 5, **wrap), nn.GELU(), nn.Conv2d(4, 2, 5, **wrap)))
    assert stage.circular is not None
    assert stage.one_pixel is not None
    assert stage.cropped is not None
    assert stage.circular.mean < EXACT
    assert stage.one_pixel.mean < EXACT
    assert stage.cropped.mean > 0.1  # the window's border wraps to other pixels


def test_a_stride_keeps_whole_units_and_loses_single_pixels() -> None:
    stage = only_stage(nn.Conv2d(3, 4, 3, 2, 1, padding_mode="circular"))
    assert (stage.map_size, stage.stride) == ((8, 8), (2.0, 2.0))
    assert stage.circular is not None
    assert stage.one_pixel is not None
    assert stage.circular.mean < EXACT
    assert stage.one_pixel.mean > 0.1


def test_patches_without_padding_are_alike_in_every_window() -> None:
    stage = only_stage(nn.Conv2d(3, 4, 4, 4), side=24, max_shift=8)
    assert stage.cropped is not None
    assert stage.circular is not None
    assert max(stage.cropped.mean, stage.circular.mean) < EXACT


def test_zero_padding_errs_at_the_border_by_as_much_as_arithmetic_says() -> None:
    ones = nn.Conv2d(1, 1, 3, padding=1, bias=False).double()
    nn.init.ones_(ones.weight)
    white = torch.ones(2, 1, 12, 12, dtype=torch.float64)
    (stage,) = shift(ones, white, ["output"], max_shift=2).stages
    found = np.full((10, 10), 9.0)  # neighbours of every pixel of a white image, which no shift changes
    found[[0, -1]], found[:, [0, -1]] = 6, 6
    found[[0, 0, -1, -1], [0, -1, 0, -1]] = 4
    moved = np.roll(found, (1, 1), axis=(0, 1))
    assert stage.one_pixel is not None
    assert stage.one_pixel.mean == pytest.approx(np.linalg.norm(found - moved) / np.linalg.norm(moved), abs=1e-12)


class LowPass(nn.Module):
    """Removes every frequency that half as many pixels can't hold, then takes every second pixel: no aliasing."""

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[-1]
        spectrum = torch.fft.fft2(x)
        keep = (torch.fft.fftfreq(n).abs() < 0.25).to(x)
        return torch.fft.ifft2(spectrum * keep[:, None] * keep).real[:, :, ::2, ::2]


def test_without_aliasing_a_strided_map_moves_by_half_a_unit() -> None:
    stage = only_stage(nn.Sequential(nn.Conv2d(3, 2, 1), LowPass()))
    assert stage.stride == (2.0, 2.0)
    assert stage.one_pixel is not None
    assert stage.one_pixel.mean < EXACT
    plain = only_stage(nn.Sequential(nn.Conv2d(3, 2, 1), nn.AvgPool2d(2)))
    assert plain.one_pixel is not None
    assert plain.one_pixel.mean > 0.1


@pytest.mark.parametrize(("side", "exact"), [(14, True), (21, True), (16, False)])
def test_rpwconv_moves_with_the_image_where_its_regions_divide_the_map(side: int, exact: bool) -> None:
    stage = only_stage(nn.Sequential(nn.Conv2d(3, 8, 1), RegionPWConv(8, region_size=7)), side=side + 2, max_shift=2)
    assert stage.map_size == (side, side)
    assert stage.circular is not None
    assert stage.one_pixel is not None
    assert (max(stage.circular.mean, stage.one_pixel.mean) < 1e-10) == exact
    assert stage.circular.mean < 2


# --- arithmetic of the maps ---


def test_a_wave_moves_by_a_fraction_of_a_unit() -> None:
    for n in (8, 9):
        position = torch.arange(n, dtype=torch.float64)
        waves = torch.stack([torch.cos(2 * math.pi * k * position / n + 0.3) for k in range((n + 1) // 2)])
        moved = torch.stack([torch.cos(2 * math.pi * k * (position - 0.37) / n + 0.3) for k in range((n + 1) // 2)])
        down = fractional_roll(waves[None, :, :, None].expand(-1, -1, -1, 3), (0.37, 0.0))
        assert torch.allclose(down, moved[None, :, :, None].expand(-1, -1, -1, 3), atol=1e-12)
        right = fractional_roll(waves[None, :, None, :].expand(-1, -1, 2, -1), (0.0, 0.37))
        assert torch.allclose(right, moved[None, :, None, :].expand(-1, -1, 2, -1), atol=1e-12)


def test_whole_fractions_are_plain_shifts() -> None:
    maps = images()
    assert torch.allclose(fractional_roll(maps, (3.0, -2.0)), maps.roll((3, -2), dims=(2, 3)), atol=1e-12)
    offsets = torch.tensor([[0, 0], [3, -2], [19, 7]])
    for one, other, (y, x) in zip(rolled(maps, offsets), maps, offsets.tolist(), strict=True):
        assert torch.equal(one, other.roll((y, x), dims=(1, 2)))


def test_errors_are_relative_to_the_expected_map() -> None:
    maps = images(count=2)
    assert relative_error(3 * maps, maps).tolist() == pytest.approx([2.0, 2.0])
    assert relative_error(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)).tolist() == [0.0]
    unrelated = relative_error(images(side=200, channels=1), images(side=200, channels=1))
    assert unrelated.tolist() == pytest.approx([2**0.5] * 3, abs=0.02)
    whole = images(side=9)
    units = torch.tensor([[0, 3], [2, 1], [3, 0]])
    windows = torch.stack([one[:, y : y + 6, x : x + 6] for one, (y, x) in zip(whole, units.tolist(), strict=True)])
    assert overlap_error(windows, whole[:, :, :6, :6], units).tolist() == [0.0] * 3


# --- consistency ---


class Position(nn.Module):
    """Answers by the parity of the column of the brightest pixel, and is sure of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        odd = (x[:, 0].amax(dim=1).argmax(dim=1) % 2).double()
        self.conv(x)
        return torch.stack([200 * odd, 200 * (1 - odd)], dim=1)


def test_pairs_agree_as_often_as_chance_says() -> None:
    dots = torch.zeros(400, 1, 9, 9, dtype=torch.float64)
    dots[:, 0, 4, 4] = 1
    result = shift(Position().double(), dots, ["conv"], max_shift=1, copies=2, count=400, batch_size=100)
    for found in (result.circular, result.cropped):
        assert found is not None
        assert found.agreement.error is not None
        assert found.agreement.error == pytest.approx(0.025, abs=1e-3)
        assert abs(found.agreement.mean - 0.5) < 4 * found.agreement.error
        assert found.drift.mean == pytest.approx(1 - found.agreement.mean)  # sure of it: 0 or 1
    even = shift(Position().double(), dots[:40], ["conv"], max_shift=1, copies=3, count=40)
    assert even.circular is not None
    # of three copies with two answers at least one pair agrees
    assert 1 / 3 < even.circular.agreement.mean < 1


def test_an_answer_that_no_shift_changes_is_consistent() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular")

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).mean(dim=(2, 3))

    result = shift(Mean().double(), images(), ["conv"], max_shift=3)
    assert result.circular is not None
    assert (result.circular.agreement.mean, result.circular.agreement.error) == (1.0, 0.0)
    assert result.circular.drift.mean < EXACT
    assert result.cropped is not None
    assert result.cropped.drift.mean > EXACT


def test_noise_and_dense_models_have_no_consistency() -> None:
    classifier = fullfield.create_model("racnn_pico", **TINY)
    result = shift(classifier, image_size=64, count=2)
    assert (result.circular, result.cropped) == (None, None)
    assert result.images == "2 images of noise (seed 0), no real ones"
    dense = shift(nn.Conv2d(3, 4, 3, padding=1).double(), images(), ["output"])
    assert (dense.circular, dense.cropped) == (None, None)


# --- models and images ---


def test_every_stage_of_a_model_is_measured_at_its_own_stride() -> None:
    result = shift(fullfield.create_model("racnn_pico", **TINY), image_size=128, max_shift=16, count=2)
    assert [s.layer for s in result.stages] == [f"stages.{i}" for i in range(4)]
    assert [s.stride for s in result.stages] == [(4.0, 4.0), (8.0, 8.0), (16.0, 16.0), (32.0, 32.0)]
    assert all(s.circular is not None and s.one_pixel is not None for s in result.stages)
    assert [s.cropped is None for s in result.stages] == [False, False, False, True]  # 32 > 16 pixels
    assert (result.weights, result.max_shift, result.image_size) == ("random", 16, (128, 128))


@pytest.mark.parametrize(
    ("name", "arguments", "sizes"),
    [
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24}, [56, 28, 14, 7]),
        ("vit_tiny_patch16_224", {"depth": 2}, [14, 14]),
    ],
)
def test_maps_of_other_layouts_are_measured(name: str, arguments: dict[str, Any], sizes: list[int]) -> None:
    result = shift(timm.create_model(name, **arguments), count=1)
    assert [s.map_size[0] for s in result.stages] == sizes
    assert all(s.circular is not None and math.isfinite(s.circular.mean) for s in result.stages)


def test_files_are_cut_from_larger_images_at_the_model_s_own_size(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", each=1)
    model = timm.create_model("resnet18", num_classes=4)
    seen: list[torch.Size] = []
    model.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0].shape))
    result = shift(model, photos, image_size=64, batch_size=2)
    assert result.max_shift == round(64 / 7)
    assert {tuple(shape[1:]) for shape in seen} == {(3, 64, 64)}
    assert (result.count, result.images) == (3, "3 images of photos")
    assert result.circular is not None


def test_the_batch_size_changes_nothing_and_the_seed_does() -> None:
    model = nn.Conv2d(3, 4, 3, 2, 1).double()
    batch = images(5)

    def run(**arguments: Any) -> list[float]:
        (stage,) = shift(model, batch, ["output"], max_shift=4, **arguments).stages
        return [e.mean for e in (stage.circular, stage.one_pixel, stage.cropped) if e is not None]

    assert run(batch_size=5) == pytest.approx(run(batch_size=2), abs=1e-14)
    assert run() == run()
    assert run()[0] != run(seed=1)[0]


class Greedy(nn.Conv2d):
    """Runs out of memory with more than `most` images."""

    most = 2

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return super().forward(x)


def test_the_batch_is_halved_where_memory_runs_out(capsys: Any) -> None:
    model = Greedy(3, 4, 3, padding=1).double()
    batch = images(6)
    result = shift(model, batch, ["output"], batch_size=6)
    assert "out of memory with 6 images at a time; going on with 3" in capsys.readouterr().err
    assert result.stages == shift(model, batch, ["output"], batch_size=2).stages
    model.most = 0
    with pytest.raises(ConfigError, match="memory does not suffice for one image of"):
        shift(model, batch, ["output"])


def test_a_model_is_left_as_it_was() -> None:
    model = fullfield.create_model("racnn_pico", **TINY).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shift(model, image_size=64, count=1)
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# --- bad input ---


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"layers": ["conv"]}, "no layer 'conv'.*--list-layers` prints them all"),
        ({"max_shift": 0}, "max_shift must be at least 1 pixel"),
        ({"max_shift": 20}, r"smaller than the images \(20 pixels\), got 20; set max_shift"),
        ({"copies": 1}, "copies at least 2, got 50, 8 and 1"),
        ({"count": 0}, "count and batch_size must be at least 1"),
        ({"batch_size": 0}, "count and batch_size must be at least 1"),
        ({"image_size": 16}, "the images are tensors"),
        ({"images": torch.zeros(3, 20, 20)}, "must be a floating-point tensor"),
    ],
)
def test_what_is_impossible_is_named(arguments: dict[str, Any], says: str) -> None:
    given: dict[str, Any] = {"images": images(), "layers": ["output"], **arguments}
    with pytest.raises(ConfigError, match=says):
        shift(nn.Conv2d(3, 4, 3, padding=1).double(), **given)


def test_models_and_images_that_can_not_be_measured_are_named(tmp_path: Path) -> None:
    resnet = timm.create_model("resnet18", num_classes=4)
    with pytest.raises(ConfigError, match=r"ResNet has no stage with a map of more than one unit at 2 x 2 pixels"):
        shift(resnet, torch.randn(1, 3, 3, 3), max_shift=1)
    with pytest.raises(ConfigError, match=r"VisionTransformer can't take images of 64 x 64"):
        shift(timm.create_model("vit_tiny_patch16_224", depth=1), image_size=64)
    with pytest.raises(DataError, match="there is no image nowhere"):
        shift(resnet, "nowhere")
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        shift(resnet, tmp_path, image_size=64)


def test_the_layer_that_is_not_finite_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()).double()
    model[1].running_var.fill_(torch.nan)
    with pytest.raises(CheckpointError, match=r"output of 1 \(BatchNorm2d\) is not finite"):
        shift(model, images(), ["2"])


# --- what a result says of itself ---


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Shift:
    torch.manual_seed(0)
    photos = write_photos(tmp_path_factory.mktemp("data") / "photos", each=1)
    return shift(fullfield.create_model("racnn_pico", num_classes=3, **TINY), photos, image_size=64, copies=3)


def test_files_and_rows_hold_the_result(result: Shift, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = result.to_rows()
    assert [row["layer"] for row in rows] == [f"stages.{i}" for i in range(4)]
    assert result.circular is not None
    assert {row["circular_agreement"] for row in rows} == {result.circular.agreement.mean}
    with result.save(tmp_path / "a.csv").open(newline="") as file:
        stored = list(csv.DictReader(file))
    assert [float(row["one_pixel_error"]) for row in stored] == [row["one_pixel_error"] for row in rows]
    assert json.loads(result.save(tmp_path / "a.json").read_text()) == rows
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="pip install pandas"):
        result.to_dataframe()


def test_an_average_has_the_textbook_s_standard_error() -> None:
    assert Estimate.of([1.0, 2.0, 6.0]) == Estimate(3.0, pytest.approx(math.sqrt(7 / 3)))
    assert Estimate.of([4.0]) == Estimate(4.0, None)


def test_pictures_state_that_weights_are_random(result: Shift, tmp_path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        drawn = result.plot(tmp_path / "a.svg").read_text()
    assert "RANDOM weights: the classes mean nothing" in drawn
    assert "3 images of photos, 64×64 px" in drawn
    with Image.open(plot_shifts([result, result], tmp_path / "a.png")) as picture:
        assert picture.format == "PNG"


def test_wrong_files_are_refused(result: Shift, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.png, \.svg or \.pdf"):
        result.plot(tmp_path / "a.gif")
    with pytest.raises(ConfigError, match="nothing to draw"):
        plot_shifts([], tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fullfield\[look\]'"):
        result.plot(tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
