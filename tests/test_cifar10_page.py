"""studies/cifar10/README.md says what its CSV files hold, the comparison is the fair one that it claims to be."""

from __future__ import annotations

import csv
import re
import statistics
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

import fullfield
from fullfield.train.settings import TrainSettings

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "studies" / "cifar10"
TEXT = (STUDY / "README.md").read_text(encoding="utf-8")
RUNS = [(net, str(seed)) for net in ("RaCNN", "ConvNeXt") for seed in range(3)]


def study_module(name: str) -> Any:
    """Import a module of the study, which is no package."""
    sys.path.insert(0, str(STUDY))
    try:
        return import_module(name)
    finally:
        sys.path.remove(str(STUDY))


nets, train, page, unpack = map(study_module, ("nets", "train", "page", "unpack"))


def rows(name: str = "results.csv") -> list[dict[str, str]]:
    with (STUDY / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def net(name: str) -> torch.nn.Module:
    registered, model_args = nets.NETS[name]
    arguments = TrainSettings(data="-", model_args=model_args).model_arguments()
    return fullfield.create_model(registered, num_classes=10, **arguments).eval()


def test_the_page_is_the_one_that_the_stored_figures_make() -> None:
    assert page.filled(TEXT, rows()) == TEXT


def test_three_seeds_of_both_nets_are_stored_with_their_environment() -> None:
    stored = rows()
    assert [(row["model"], row["seed"]) for row in stored] == RUNS
    assert train.missing(stored) == []
    for row in stored:
        assert all(row.values()), row
        assert (row["test_images"], row["train_images"]) == ("10000", str(10 * unpack.TRAIN_PER_CLASS))
        assert float(row["minutes"]) <= 5
        assert (row["cores"], row["threads"]) == ("2", "2")


def test_means_and_deviations_on_the_page_are_those_of_the_seeds() -> None:
    for name in nets.NETS:
        top1 = [100 * float(row["top1"]) for row in rows() if row["model"] == name]
        told = re.search(rf"^\| {name} \|.*\| ([\d.]+) ± ([\d.]+) \|", TEXT, re.MULTILINE)
        assert told is not None
        assert float(told[1]) == pytest.approx(statistics.mean(top1), abs=0.0501)
        assert float(told[2]) == pytest.approx(float(np.std(top1, ddof=1)), abs=0.0501)


def test_every_run_has_a_curve_of_every_epoch() -> None:
    curves = rows("curves.csv")
    epochs = rows()[0]["epochs"]
    assert epochs == str(train.CHANGES["epochs"])
    expected = [(*run, str(epoch)) for run in RUNS for epoch in range(1, int(epochs) + 1)]
    assert [(row["model"], row["seed"], row["epoch"]) for row in curves] == expected


def test_stored_counts_are_the_counted_ones_and_the_macs_are_within_3_percent() -> None:
    counted = {name: nets.counted(name) for name in nets.NETS}
    for row in rows():
        cost = counted[row["model"]]
        assert (int(row["params"]), int(row["macs"])) == (cost.params, cost.macs)
        assert cost.params == sum(p.numel() for p in net(row["model"]).parameters())
    assert counted["ConvNeXt"].macs == pytest.approx(counted["RaCNN"].macs, rel=0.03)
    assert counted["RaCNN"].params < 1.5e6


@pytest.mark.parametrize("name", ["RaCNN", "ConvNeXt"])
def test_both_nets_have_maps_of_16_8_4_and_2(name: str) -> None:
    sides: list[int] = []

    def note(_: object, __: object, output: Tensor) -> None:
        sides.append(output.shape[-1])

    model = net(name)
    for stage in model.stages:  # type: ignore[union-attr]
        stage.register_forward_hook(note)
    model(torch.randn(1, 3, 32, 32))
    assert sides == [16, 8, 4, 2]


def test_layer_scale_of_the_convnext_starts_as_if_there_were_none() -> None:
    scales = [value for name, value in net("ConvNeXt").named_parameters() if name.endswith("gamma")]
    assert scales
    assert all(bool((scale == 1).all()) for scale in scales)


def test_settings_are_the_recipe_s_but_for_the_epochs_and_the_same_for_both_nets(tmp_path: Path) -> None:
    recipe = yaml.safe_load((ROOT / "recipes" / "cifar10.yaml").read_text(encoding="utf-8"))
    racnn, convnext = (vars(train.settings(name, 1, tmp_path, tmp_path / "run")) for name in nets.NETS)
    assert {name for name in racnn if racnn[name] != convnext[name]} == {"model", "model_args"}
    assert {name for name, value in recipe.items() if racnn[name] != value} == {"epochs", "model_args"}
    assert racnn["model_args"] == tuple(recipe["model_args"])


def test_page_says_what_was_changed_and_that_published_figures_are_another_matter() -> None:
    assert f"with {train.CHANGES['epochs']} epochs and nothing else changed" in TEXT
    assert list(train.CHANGES) == ["epochs"]
    assert "can't be compared with published CIFAR-10 figures" in TEXT


def test_stored_rows_are_replaced_by_net_and_seed_and_kept_in_order(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    for model, seed, top1 in [("ConvNeXt", "1", "a"), ("RaCNN", "2", "b"), ("RaCNN", "0", "c"), ("ConvNeXt", "1", "d")]:
        train.store(file, [{"model": model, "seed": seed, "top1": top1}])
    stored = train.stored(file)
    assert [(row["model"], row["top1"]) for row in stored] == [("RaCNN", "c"), ("RaCNN", "b"), ("ConvNeXt", "d")]
    assert train.missing(stored) == [("ConvNeXt", 0), ("RaCNN", 1), ("ConvNeXt", 2)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two classes in turn, as bytes that say which image they are; three images a class to train and test on."""
    for split in ("train", "test"):
        files = [f"{split} {number}".encode() for number in range(6)]
        np.savez(
            tmp_path / f"{split}.npz",
            data=np.frombuffer(b"".join(files), np.uint8),
            offsets=np.cumsum([0, *map(len, files)]),
            labels=np.array([0, 1] * 3, np.uint8),
            classes=np.array(["cat", "dog"]),
        )
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.jpg"))}


def test_first_images_of_each_class_are_unpacked_as_they_are(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "VAL_PER_CLASS", 1)
    folder = unpack.unpack(source, tmp_path / "images", train_per_class=1)
    found = contents(folder)
    assert {name: body for name, body in found.items() if not name.startswith("test")} == {
        "train/cat/00000.jpg": b"train 0",
        "train/dog/00001.jpg": b"train 1",
        "val/cat/00002.jpg": b"train 2",
        "val/dog/00003.jpg": b"train 3",
    }
    assert sorted(body for name, body in found.items() if name.startswith("test")) == [
        f"test {number}".encode() for number in range(6)
    ]
    (source / "train.npz").unlink()
    assert unpack.unpack(source, folder) == folder  # it is there, and is not made again


def test_too_few_images_are_an_error_that_leaves_no_folder(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"too few images of \{'cat': 3, 'dog': 3\}; 1100 are needed"):
        unpack.unpack(source, tmp_path / "images")
    assert not (tmp_path / "images").exists()
