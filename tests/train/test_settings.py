"""The settings: what YAML and the command line make of them comes back the same, and the impossible is refused."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullfield.cli.parse import parse
from fullfield.cli.train import TrainArguments
from fullfield.errors import ConfigError
from fullfield.train.settings import TrainSettings, parse_interval, parse_share

EVERYTHING: dict[str, Any] = {
    "data": "my photos",
    "task": "detect",
    "model": "racnn_tiny",
    "model_args": ("region_size=4", "dims=[8,16,24,32]", "similarity=inner"),
    "head": "retinanet",
    "head_args": ("fpn_channels=64", "norm=group"),
    "out": "runs/a b",
    "overwrite": True,
    "epochs": 7,
    "image_size": 96,
    "image_size_start": 64,
    "long_side": 160,
    "batch_size": 3,
    "accumulate": 2,
    "repeats": 3,
    "weights": "runs/old",
    "reset_classifier": True,
    "freeze": ("stem", "stages.0"),
    "lr": 1e-5,
    "lr_rule": "linear",
    "weight_decay": 0.0,
    "layer_decay": 0.75,
    "warmup_epochs": 0.5,
    "clip_grad": 0.0,
    "ema": 0.0,
    "sparsity": 0.4,
    "precision": "bf16",
    "channels_last": False,
    "grad_checkpointing": True,
    "teacher": "resnet50",
    "distill_weight": 0.9,
    "distill_temperature": 2.0,
    "distill_hard": True,
    "drop_path": 0.2,
    "drop_rate": 0.1,
    "label_smoothing": 0.0,
    "mixup": 0.8,
    "cutmix": 1.0,
    "rand_augment": 9,
    "erasing": 0.25,
    "scale_min": 0.08,
    "scale_jitter": "large",
    "crop": 0.5,
    "photometric": 0.25,
    "copy_paste": 0.125,
    "mosaic": 0.75,
    "loss": "dice",
    "hflip": False,
    "vflip": True,
    "val_share": 0.2,
    "patience": 5,
    "max_bad": "0.02",
    "workers": 0,
    "device": "cpu",
    "devices": 2,
    "restarts": 3,
    "strategy": "fsdp",
    "sync_bn": False,
    "checkpoint_every": "500",
    "logger": ("none",),
    "seed": 42,
}


def test_the_table_above_changes_every_setting_but_pretrained() -> None:
    unchanged = [f.name for f in dataclasses.fields(TrainSettings) if EVERYTHING.get(f.name, f.default) == f.default]
    assert unchanged == ["pretrained"]


@pytest.mark.parametrize("values", [{"data": "photos"}, EVERYTHING], ids=["defaults", "everything"])
def test_yaml_comes_back_the_same(tmp_path: Path, values: dict[str, Any]) -> None:
    given_settings = TrainSettings(**values)
    file = tmp_path / "config.yaml"
    file.write_text(given_settings.to_yaml("Repeat with: x\nline two"), encoding="utf-8")
    assert file.read_text().startswith("# Repeat with: x\n# line two\ndata: ")
    assert TrainSettings.from_yaml(file) == given_settings
    assert TrainSettings.from_yaml(file, seed=3) == dataclasses.replace(given_settings, seed=3)


def parsed(command: str) -> dict[str, Any]:
    words = shlex.split(command)
    assert words[:2] == ["fullfield", "train"]
    return dataclasses.asdict(parse(TrainArguments, "train", words[2:]))


@pytest.mark.parametrize("values", [{"data": "photos"}, EVERYTHING], ids=["defaults", "everything"])
def test_command_parses_back_to_the_same_settings(values: dict[str, Any]) -> None:
    given_settings = TrainSettings(**values)
    # where to write is left to whoever repeats the run
    assert parsed(given_settings.command()) == dataclasses.asdict(given_settings) | {"out": None, "overwrite": False}


def test_command_says_only_what_is_not_the_default() -> None:
    assert TrainSettings("photos").command() == "fullfield train photos"
    assert TrainSettings("my photos", hflip=False, seed=3).command() == (
        "fullfield train 'my photos' --no-hflip --seed 3"
    )


text = st.text(st.characters(exclude_categories=("C",)), min_size=1, max_size=12).filter(
    lambda word: not word.startswith("-")
)
share = st.floats(0, 1, exclude_max=True)
some = st.fixed_dictionaries(
    {"data": text},
    optional={
        "model": text,
        "model_args": st.lists(text.map(lambda word: f"key='{word.translate({39: None, 92: None})}'")).map(tuple),
        "epochs": st.integers(1, 10**6),
        "lr": st.floats(1e-12, 1e3),
        "weight_decay": st.floats(0, 1e3),
        "ema": share,
        "sparsity": share,
        "hflip": st.booleans(),
        "rand_augment": st.integers(0, 30),
        "precision": st.sampled_from(["auto", "32", "bf16", "16"]),
        "patience": st.none() | st.integers(1, 50),
        "max_bad": st.sampled_from(["0%", "2.5%", "1", "0.01"]),
        "seed": st.integers(-(2**31), 2**63 - 1),
        "workers": st.none() | st.integers(0, 64),
    },
)


@given(some)
@settings(max_examples=100, deadline=None)
def test_any_settings_come_back_from_command_and_yaml(values: dict[str, Any]) -> None:
    given_settings = TrainSettings(**values)
    assert parsed(given_settings.command()) == dataclasses.asdict(given_settings)
    assert TrainSettings.from_dict(values) == given_settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("epochs", "image_size", "batch_size", "patience") for value in (0, -1, "3", 2.5)),
        *(("workers", value) for value in (-1, 1.5, "many")),
        *(
            (name, value)
            for name in ("drop_path", "drop_rate", "label_smoothing", "erasing", "ema", "sparsity")
            for value in (-0.1, 1)
        ),
        *(("lr", value) for value in (0, -1e-3, float("nan"), float("inf"), "fast")),
        *((name, -1) for name in ("weight_decay", "warmup_epochs", "clip_grad", "mixup", "cutmix")),
        *((name, float("nan")) for name in ("weight_decay", "warmup_epochs", "ema", "scale_min", "val_share")),
        *((name, value) for name in ("layer_decay", "scale_min") for value in (0, -0.5, 1.5)),
        *(("rand_augment", value) for value in (-1, 31, 9.5)),
        *(("val_share", value) for value in (0, 1, -0.1)),
        *(("precision", value) for value in ("8", 128, "float", None)),
        *(("checkpoint_every", value) for value in ("often", "0m", "-5", "1.5", "10 days", "", "nan")),
        *((name, value) for name in ("accumulate", "repeats", "devices") for value in (0, 1.5, None)),
        *(("max_bad", value) for value in ("lots", "101%", "-1%", "1.1", "", "nan", True)),
        *(("hflip", value) for value in ("yes", 1, None)),
        *(("model_args", value) for value in ("region_size=4", 4, ["region_size"], ["=4"], ["dims=[8,"])),
        *((name, None) for name in ("seed", "weight_decay", "data", "device")),
        ("model", ["racnn_tiny"]),
        ("epochs", True),
    ],
)
def test_impossible_value_is_refused_and_the_setting_named(name: str, value: object) -> None:
    named = "model argument" if name == "model_args" and isinstance(value, list) else name
    with pytest.raises(ConfigError, match=rf"^{named}"):
        TrainSettings.from_dict({"data": "photos", name: value})


@pytest.mark.parametrize(
    ("name", "written", "meant"),
    [
        ("lr", "1e-3", 1e-3),  # YAML takes this for text
        ("lr", 1, 1.0),
        ("precision", 32, "32"),
        ("max_bad", 0.01, "0.01"),
        ("out", Path("runs/a"), "runs/a"),
        ("model_args", ["a=1"], ("a=1",)),
        ("layer_decay", None, None),
    ],
)
def test_loose_spellings_of_yaml_and_python_are_understood(name: str, written: object, meant: object) -> None:
    value = getattr(TrainSettings.from_dict({"data": "photos", name: written}), name)
    assert value == meant
    assert type(value) is type(meant)


def test_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="here: unknown setting 'epoch'; did you mean 'epochs'"):
        TrainSettings.from_dict({"data": "photos", "epoch": 3}, where="here")
    file = tmp_path / "config.yaml"
    file.write_text("data: photos\nbatchsize: 3\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: unknown setting 'batchsize'; did you mean 'batch_size'"):
        TrainSettings.from_yaml(file)
    with pytest.raises(ConfigError, match="unknown setting 3"):
        TrainSettings.from_dict({"data": "photos", 3: 3})  # type: ignore[dict-item]


def test_data_must_be_named() -> None:
    with pytest.raises(ConfigError, match="'data' is missing"):
        TrainSettings.from_dict({"epochs": 3})


@pytest.mark.parametrize("content", [b"a: [", b"- data\n", b"", b"\xff\xfe", b"photos"])
def test_damaged_yaml_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        TrainSettings.from_yaml(file)


def test_missing_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml can't be read"):
        TrainSettings.from_yaml(tmp_path / "nothing.yaml")


def test_weights_and_pretrained_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="weights and pretrained"):
        TrainSettings("photos", weights="a", pretrained=True)


def test_model_arguments_are_read_as_yaml() -> None:
    items = (
        "region_size=4",
        "dims=[8, 16]",
        "layer_scale=0.1",
        "inner_residual=false",
        "placement=modulo",
        "x=",
        "y=a=b",
    )
    assert TrainSettings("photos", model_args=items).model_arguments() == {
        "region_size": 4,
        "dims": (8, 16),
        "layer_scale": 0.1,
        "inner_residual": False,
        "placement": "modulo",
        "x": None,
        "y": "a=b",
    }


@pytest.mark.parametrize(
    ("written", "meant"), [("1%", 0.01), ("0.01", 0.01), ("0", 0.0), ("100%", 1.0), ("1", 1.0), ("2.5%", 0.025)]
)
def test_share_is_a_percentage_or_a_fraction(written: str, meant: float) -> None:
    assert parse_share(written) == pytest.approx(meant)


@pytest.mark.parametrize(
    ("text", "seconds", "steps"),
    [("90s", 90, None), ("10m", 600, None), ("1.5h", 5400, None), ("500", None, 500), ("500 steps", None, 500)],
)
def test_intervals_are_times_or_steps(text: str, seconds: float | None, steps: int | None) -> None:
    assert parse_interval(text) == (seconds, steps)
