"""Fitted settings: the stated rules worked out by hand in a table, and a user's values left alone."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import fullfield
from fullfield.data import ImageData, Sample
from fullfield.layers import RegionPWConv
from fullfield.train import fitting
from fullfield.train.fitting import fit_settings, typical_side
from fullfield.train.settings import TrainSettings

CPU, GPU = torch.device("cpu"), torch.device("cuda")
FITTED = ("model", "image_size", "batch_size", "epochs", "lr", "workers")


def data_of(count: int, path: Path = Path("nowhere.jpg")) -> ImageData:
    samples = tuple(Sample(path, i % 2) for i in range(count))
    return ImageData("photos", ("a", "b"), {"train": samples, "val": samples[:1]})


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("device", "count", "batch", "epochs", "lr"),
    [
        # batch: the largest power of two in count / 16, from 4 to 32 (128); epochs: 2000 / (count // batch) in 10..100
        (CPU, 2, 4, 100, 2.5e-4),
        (CPU, 30, 4, 100, 2.5e-4),
        (CPU, 100, 4, 80, 2.5e-4),
        (CPU, 128, 8, 100, 3.5e-4),
        (CPU, 500, 16, 65, 5e-4),
        (CPU, 5_000, 32, 13, 7.1e-4),
        (CPU, 50_000, 32, 10, 7.1e-4),
        (GPU, 30, 4, 100, 2.5e-4),
        (GPU, 5_000, 128, 51, 1.4e-3),
        (GPU, 50_000, 128, 10, 1.4e-3),
    ],
)
def test_batch_epochs_and_rate_follow_the_number_of_images(
    device: torch.device, count: int, batch: int, epochs: int, lr: float
) -> None:
    fitted, _ = fit_settings(TrainSettings("photos"), data_of(count), device)
    assert (fitted.batch_size, fitted.epochs) == (batch, epochs)
    assert fitted.lr == pytest.approx(1e-3 * math.sqrt(batch / 64), rel=0.03)
    assert fitted.lr == lr


@pytest.mark.parametrize(
    ("side", "cpu", "gpu"),
    [(1, 32, 32), (40, 32, 32), (50, 64, 64), (128, 128, 128), (200, 128, 192), (224, 128, 224), (3000, 128, 224)],
)
def test_image_size_is_the_images_own_in_steps_of_32_up_to_a_limit(
    monkeypatch: pytest.MonkeyPatch, side: int, cpu: int, gpu: int
) -> None:
    monkeypatch.setattr(fitting, "typical_side", lambda _: side)
    assert fit_settings(TrainSettings("photos"), data_of(30), CPU)[0].image_size == cpu
    assert fit_settings(TrainSettings("photos"), data_of(30), GPU)[0].image_size == gpu


def test_model_and_workers_follow_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fit_settings(TrainSettings("photos"), data_of(30), CPU)[0].model == "racnn_pico"
    assert fit_settings(TrainSettings("photos"), data_of(30), GPU)[0].model == "racnn_tiny"
    for cores, cpu, gpu in ((1, 0, 0), (2, 0, 1), (8, 1, 7), (64, 8, 8)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: set(range(n)), raising=False)
        assert fit_settings(TrainSettings("photos"), data_of(30), CPU)[0].workers == cpu
        assert fit_settings(TrainSettings("photos"), data_of(30), GPU)[0].workers == gpu


def test_rate_and_epochs_follow_the_user_s_batch() -> None:
    fitted, _ = fit_settings(TrainSettings("photos", batch_size=64), data_of(6_400), CPU)
    assert fitted.lr == 1e-3
    assert fitted.epochs == 20


@pytest.mark.parametrize("start", [{"weights": "runs/a"}, {"pretrained": True}], ids=str)
def test_given_weights_are_trained_at_a_fifth_of_the_rate(start: dict[str, Any]) -> None:
    assert fit_settings(TrainSettings("photos", batch_size=64, **start), data_of(30), CPU)[0].lr == 2e-4


USER = {"model": "racnn_nano", "image_size": 40, "batch_size": 3, "epochs": 2, "lr": 0.5, "workers": 5}


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
@pytest.mark.parametrize("name", FITTED)
def test_value_of_the_user_stays_and_only_the_others_are_said(name: str, device: torch.device) -> None:
    fitted, notes = fit_settings(TrainSettings("photos", **{name: USER[name]}), data_of(30), device)
    assert getattr(fitted, name) == USER[name]
    others = [other for other in FITTED if other != name]
    notes = [note for note in notes if not note.startswith("region size")]
    assert [note.partition(f" {getattr(fitted, other)}: ")[0] for note, other in zip(notes, others, strict=True)] == [
        other.replace("_", " ") for other in others
    ]


def test_nothing_is_said_where_the_user_chose_everything() -> None:
    given = TrainSettings("photos", **USER, model_args=("region_size=5",))
    assert fit_settings(given, data_of(30), CPU) == (given, [])


def test_what_has_no_rule_is_left_as_it_was() -> None:
    given = TrainSettings("photos", image_size=224, seed=7, ema=0.5, patience=None, hflip=False)
    fitted, _ = fit_settings(given, data_of(30), CPU)
    for field in dataclasses.fields(given):
        if field.name not in FITTED:
            assert getattr(fitted, field.name) == getattr(given, field.name)


@pytest.mark.parametrize(
    ("image_size", "given", "expected"),
    [
        # maps of the third stage are image size / 16; a region has half their side, so that a window has 2 x 2 pixels
        (32, (), "[1,1,1,1]"),
        (96, (), "[3,3,3,1]"),
        (100, ("dims=[8,16,24,32]",), "[3,3,3,1]"),
        (192, (), "[6,6,6,1]"),
        (32, ("stem_stride=2",), "[2,2,2,1]"),
        (32, ("stem_stride=1",), "[4,4,4,1]"),
        (16, (), "[1,1,1,1]"),
        (224, (), None),
        (384, (), None),
        (96, ("region_size=7",), None),
        (96, ("stem_stride=3",), None),
    ],
)
def test_regions_of_racnn_shrink_with_small_images(image_size: int, given: tuple[str, ...], expected: str) -> None:
    settings = TrainSettings("photos", image_size=image_size, model_args=given)
    fitted, notes = fit_settings(settings, data_of(30), CPU)
    assert fitted.model_args == (given if expected is None else (*given, f"region_size={expected}"))
    assert any(note.startswith("region size") for note in notes) == (expected is not None)


def test_a_window_of_the_third_stage_then_has_the_pixels_that_it_has_at_224() -> None:
    for side in (64, 96, 128, 160, 192):
        fitted, _ = fit_settings(TrainSettings("photos", image_size=side), data_of(30), CPU)
        model = fullfield.create_model("racnn_pico", **fitted.model_arguments())
        maps = model.forward_intermediates(torch.zeros(1, 3, side, side), intermediates_only=True)
        regions = [module.region_size for module in model.modules() if isinstance(module, RegionPWConv)]
        assert {maps[2].shape[-1] // region for region in regions[7:20]} == {2}  # 3 + 4 blocks before, 13 of its own


@pytest.mark.parametrize(
    "given",
    [{"weights": "runs/a"}, {"pretrained": True}, {"model": "racnn_tiny_literal"}, {"model": "resnet18"}],
    ids=str,
)
def test_regions_stay_where_weights_or_the_variant_settle_them(given: dict[str, Any]) -> None:
    fitted, _ = fit_settings(TrainSettings("photos", image_size=96, **given), data_of(30), CPU)
    assert fitted.model_args == ()


def test_typical_side_is_the_median_shorter_side_of_those_that_open(tmp_path: Path) -> None:
    samples = []
    for number, size in enumerate([(10, 90), (64, 30), (50, 50)]):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
        samples.append(Sample(tmp_path / f"{number}.png", 0))
    (tmp_path / "text.png").write_text("no image")
    samples += [Sample(tmp_path / "text.png", 1), Sample(tmp_path / "gone.png", 1)]
    data = ImageData("photos", ("a", "b"), {"train": tuple(samples), "val": tuple(samples[:1])})
    assert typical_side(data) == 30


def test_typical_side_without_a_readable_image_is_224() -> None:
    assert typical_side(data_of(5)) == 224
