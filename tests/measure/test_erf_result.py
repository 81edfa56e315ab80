"""What a result says of itself: whether weights are trained, files, rows and pictures."""

from __future__ import annotations

import csv
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import fullfield
from fullfield.errors import ConfigError, MissingExtraError
from fullfield.measure.erf import erf, erf_of_stages, layers_of
from fullfield.measure.erf_model import open_measured, weights_of, with_random_weights
from fullfield.measure.erf_plot import plot_erfs
from fullfield.measure.erf_result import Erf
from tests.images import finished, photos

__all__ = ["finished", "photos"]

TINY: dict[str, Any] = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}


@pytest.fixture(scope="module")
def results() -> list[Erf]:
    torch.manual_seed(0)
    return erf_of_stages(fullfield.create_model("racnn_pico", **TINY), count=2, image_size=64)


# --- trained or not ---


@pytest.mark.parametrize(
    "name",
    ["racnn_pico", "resnet18", "convnext_atto", "vit_tiny_patch16_224", "mobilenetv3_small_050", "poolformer_s12"],
)
def test_fresh_models_are_known_to_be_random(name: str) -> None:
    model = timm.create_model(name)
    assert weights_of(model) == "random"
    norms = [m for m in model.modules() if "Norm" in type(m).__name__ and getattr(m, "weight", None) is not None]
    with torch.no_grad():
        norms[-1].weight[0] += 0.1
    assert weights_of(model) == "trained"


def test_running_statistics_and_loaders_tell_too() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model(torch.randn(2, 3, 8, 8))
    assert weights_of(model) == "trained"
    bare = nn.Conv2d(3, 4, 3)
    assert weights_of(bare) == "unknown"
    bare.loaded_from = "official.pth"  # type: ignore[assignment]
    assert weights_of(bare) == "trained"


def test_a_run_is_trained_and_its_twin_has_the_same_layers_and_random_weights(finished: Path) -> None:
    measured = open_measured(finished, device="cpu")
    assert (measured.name, measured.weights) == ("racnn_pico (finished)", "trained")
    assert weights_of(measured.model) == "trained"
    twin = with_random_weights(measured)
    assert (twin.weights, weights_of(twin.model)) == ("random", "random")
    shapes = [{k: v.shape for k, v in m.model.state_dict().items()} for m in (measured, twin)]
    assert shapes[0] == shapes[1]
    trained, random = (erf(m, count=2) for m in (measured, twin))
    assert (trained.weights, random.weights) == ("trained", "random")
    assert trained.image_size == (32, 32)
    assert not np.array_equal(trained.map, random.map)
    by_file = erf(finished / "checkpoints" / "best.safetensors", count=2, device="cpu")
    np.testing.assert_array_equal(by_file.map, trained.map)


FILE = """
import fullfield
from torch import nn

def racnn():
    return fullfield.create_model("racnn_pico", dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))

def grey():
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 5, 2, 2))
"""


def test_a_model_of_the_users_own_file_is_measured(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FILE)
    result = fullfield.measure.erf(f"{tmp_path}/net.py:racnn", count=1, image_size=64, device="cpu")
    assert (result.model, result.layer, result.weights) == ("net.py:racnn", "stages.3", "random")
    twin = with_random_weights(open_measured(tmp_path / "net.py:racnn", device="cpu"))
    assert (twin.name, weights_of(twin.model)) == ("net.py:racnn", "random")
    grey = fullfield.measure.erf(tmp_path / "net.py:grey", count=1, image_size=24, device="cpu")
    assert (grey.layer, grey.map_size, grey.bound, grey.weights) == ("output", (12, 12), "7×7 px", "unknown")
    with pytest.raises(ConfigError, match=r"did you mean 'racnn'"):
        fullfield.measure.erf(f"{tmp_path}/net.py:racn")


def test_models_of_other_numbers_of_channels_take_tensors() -> None:
    model = fullfield.create_model("racnn_pico", in_chans=5, **TINY)
    assert fullfield.measure.erf(model, torch.randn(1, 5, 64, 64)).image_size == (64, 64)
    with pytest.raises(ConfigError, match="can't take images of 64 x 64 pixels and 3 channels"):
        fullfield.measure.erf(model, image_size=64)
    grey = fullfield.create_model("racnn_pico", in_chans=1, **TINY)
    assert fullfield.measure.erf(grey, count=1, image_size=64).count == 1


def test_the_function_is_where_the_command_is() -> None:
    module = import_module("fullfield.measure.erf")
    assert fullfield.measure.erf is module.erf


def test_a_model_of_unknown_making_has_no_random_twin() -> None:
    with pytest.raises(ConfigError, match="Conv2d was not made by name"):
        with_random_weights(open_measured(nn.Conv2d(3, 4, 3)))


def test_attention_nets_that_are_opened_here_take_the_size_asked_for() -> None:
    result = erf("vit_tiny_patch16_224", count=1, image_size=64, layer="blocks.0", device="cpu")
    assert (result.image_size, result.map_size) == ((64, 64), (4, 4))
    twin = with_random_weights(open_measured("vit_tiny_patch16_224", device="cpu", image_size=64))
    assert erf(twin, count=1, image_size=64, layer="blocks.0").map_size == (4, 4)


def test_the_layers_that_can_be_measured_are_listed() -> None:
    layers = layers_of(fullfield.create_model("racnn_pico", **TINY), 64)
    found = {entry.layer: (entry.kind, entry.channels, entry.size) for entry in layers}
    assert found["stages.2"] == ("Stage", 24, (4, 4))
    assert found["stages.0.blocks.0.0.body.mixer"] == ("RegionPWConv", 8, (16, 16))
    assert not any(name.startswith("head.fc") for name in found)


# --- files and rows ---


def test_saved_files_give_the_map_and_the_numbers_back(results: list[Erf], tmp_path: Path) -> None:
    result = results[1]
    with np.load(result.save(tmp_path / "erf.npz")) as stored:
        np.testing.assert_array_equal(stored["map"], result.map)
        assert json.loads(str(stored["numbers"])) == result.to_dict()
    np.testing.assert_array_equal(np.load(result.save(tmp_path / "erf.npy")), result.map)
    assert json.loads(result.save(tmp_path / "erf.json").read_text()) == result.to_dict()
    with result.save(tmp_path / "erf.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["area_ratio"]) for row in rows] == list(result.area_ratio.values())
    assert {row["image_size"] for row in rows} == {"64×64"}
    with pytest.raises(ConfigError, match=r"erf\.txt must end in \.npz, \.npy, \.json or \.csv"):
        result.save(tmp_path / "erf.txt")


def test_a_data_frame_needs_pandas(results: list[Erf], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="pip install pandas"):
        results[0].to_dataframe()


def test_rectangles_are_never_larger_than_squares(results: list[Erf]) -> None:
    for result in results:
        for share, square in result.squares.items():
            assert result.rectangles[share].ratio <= square.ratio


# --- pictures ---


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_pictures_are_written_in_the_format_of_their_name(results: list[Erf], tmp_path: Path, kind: str) -> None:
    path = plot_erfs(results, tmp_path / f"erf.{kind}")
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind]
    assert path.read_bytes().startswith(start)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_picture_says_model_layer_and_weights(results: list[Erf], tmp_path: Path) -> None:
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none"}):
        text = plot_erfs(results[:2], tmp_path / "erf.svg").read_text()
    for words in ("racnn_pico", "stages.1, RANDOM weights", "2 images of noise (seed 0)", "64×64 px", "initialisation"):
        assert words in text


def test_the_bright_part_of_a_picture_grows_with_the_field(tmp_path: Path) -> None:
    def warm_pixels(kernel: int) -> int:
        net = nn.Conv2d(3, 4, kernel, padding=kernel // 2)
        result = erf(net, count=1, image_size=32, layer="output", channels="sum")
        pixels = np.asarray(Image.open(result.plot(tmp_path / "erf.png")).convert("RGB")).astype(int)
        return int((pixels[..., 0] - pixels[..., 2] > 40).sum())

    one, nine, seventeen = map(warm_pixels, (1, 9, 17))
    assert (seventeen - one) / (nine - one) == pytest.approx((17**2 - 1) / (9**2 - 1), rel=0.15)


@pytest.mark.parametrize(("name", "says"), [("erf.jpg", r"must end in \.png, \.svg or \.pdf"), ("erf.png", "no field")])
def test_what_cannot_be_drawn_is_told(results: list[Erf], tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plot_erfs(results if name == "erf.jpg" else [], tmp_path / name)


def test_pictures_need_matplotlib(results: list[Erf], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fullfield\[look\]'"):
        results[0].plot(tmp_path / "erf.png")
