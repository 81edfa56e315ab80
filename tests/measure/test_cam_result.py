"""What a result says of itself: files, rows, pictures, and whether the weights are trained."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fullfield
from fullfield.errors import ConfigError, MissingExtraError
from fullfield.measure.cam import cam
from fullfield.measure.cam_plot import overlay, plot_cams
from fullfield.measure.cam_result import Cam


@pytest.fixture(scope="module")
def result() -> Cam:
    torch.manual_seed(0)
    model = fullfield.create_model("racnn_pico", dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_classes=4)
    return cam(model, torch.randn(3, 64, 64), method="layer-cam", steps=4, orders=1)


def test_files_hold_the_result(result: Cam, tmp_path: Path) -> None:
    stored = json.loads(result.save(tmp_path / "a.json").read_text())
    assert stored == json.loads(json.dumps(result.to_dict()))
    assert stored["scores"]["deletion"]["auc"] == pytest.approx(result.scores.deletion.auc)  # type: ignore[union-attr]
    with np.load(result.save(tmp_path / "a.npz")) as arrays:
        assert np.array_equal(arrays["map"], result.map)
        assert np.array_equal(arrays["image"], result.image)
        assert json.loads(str(arrays["numbers"])) == stored
    assert np.array_equal(np.load(result.save(tmp_path / "a.npy")), result.map)
    with result.save(tmp_path / "a.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["map_size"] == "2×2"
    assert float(row["random_insertion"]) == pytest.approx(
        result.scores.random_insertion.auc  # type: ignore[union-attr]
    )
    with pytest.raises(ConfigError, match=r"must end in \.npz, \.npy, \.json or \.csv"):
        result.save(tmp_path / "a.png")


def test_a_row_without_scores_has_the_same_columns(result: Cam) -> None:
    (bare,) = replace(result, scores=None).to_rows()
    (full,) = result.to_rows()
    assert bare.keys() == full.keys()
    assert bare["deletion"] is None


def test_a_data_frame_is_made_or_pandas_is_named(result: Cam, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="pip install pandas"):
        result.to_dataframe()
    fake: Any = type("pandas", (), {"DataFrame": staticmethod(lambda rows: rows)})
    monkeypatch.setitem(sys.modules, "pandas", fake)
    assert result.to_dataframe() == result.to_rows()


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_pictures_are_drawn(result: Cam, tmp_path: Path, kind: str) -> None:
    path = result.plot(tmp_path / f"a.{kind}")
    start = path.read_bytes()[:5]
    assert start == {"png": b"\x89PNG\r", "svg": b"<?xml", "pdf": b"%PDF-"}[kind]
    assert [p.name for p in tmp_path.iterdir()] == [f"a.{kind}"]


def test_a_picture_states_class_probability_method_and_that_weights_are_random(result: Cam, tmp_path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        drawn = result.plot(tmp_path / "a.svg").read_text()
    for words in (
        f"class {result.class_index}",
        f"probability {result.confidence:.1%}",
        "layer-cam",
        "RANDOM weights",
        "random weights: the class and the map mean nothing",
        f"deletion {result.scores.deletion.auc:.2f}",  # type: ignore[union-attr]
    ):
        assert words in drawn
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        trained = replace(result, weights="trained").plot(tmp_path / "b.svg").read_text()
    assert "mean nothing" not in trained


def test_rows_are_images_and_columns_methods(result: Cam, tmp_path: Path) -> None:
    other = replace(result, method="grad-cam", scores=None)
    boxed = replace(result, source="second.jpg", task="detect", box=(4.0, 8.0, 40.0, 30.0))
    empty = replace(boxed, method="grad-cam", map=np.zeros_like(result.map))
    assert empty.empty
    assert not result.empty
    with Image.open(plot_cams([result, other, boxed, empty], tmp_path / "a.png")) as picture:
        two_rows = picture.size
    with Image.open(plot_cams([result, other], tmp_path / "b.png")) as picture:
        assert two_rows[0] == picture.size[0]
        assert two_rows[1] > 1.8 * picture.size[1]


def test_colour_covers_the_peak_and_spares_the_rest(result: Cam) -> None:
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    grey = np.full((64, 64, 3), 128, dtype=np.uint8)
    drawn = overlay(replace(result, map=ramp, image=grey)).astype(int)
    assert drawn.shape == (64, 64, 3)
    assert np.ptp(drawn[:, 0]) == 0  # cold: no hue
    assert np.ptp(drawn[0, 0]) == 0
    warm = drawn[0, :, 0] - drawn[0, :, 2]
    assert warm[-1] > 60
    # no edge that the map does not have
    assert np.abs(np.diff(drawn[0].mean(axis=1))).max() <= 6


def test_wrong_files_are_refused(result: Cam, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.png, \.svg or \.pdf"):
        result.plot(tmp_path / "a.gif")
    with pytest.raises(ConfigError, match="no map to draw"):
        plot_cams([], tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_extra_is_named(result: Cam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fullfield\[look\]'"):
        result.plot(tmp_path / "a.png")
