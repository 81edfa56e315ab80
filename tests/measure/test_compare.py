"""`compare`: every part of every model, gaps with their reasons, and nothing made up. No test looks at a time."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fullfield
from fullfield.errors import CheckpointError, ConfigError, DataError, MissingExtraError, ModelNotFoundError
from fullfield.measure.compare import PARTS, compare
from fullfield.measure.compare_plot import plot_comparison
from fullfield.measure.compare_result import Budget, Comparison
from fullfield.measure.cost import cost
from tests.images import finished, photos
from tests.measure.comparison import TwoStages, full_model, made_up

__all__ = ["finished", "photos"]

module = import_module("fullfield.measure.compare")  # the package may give the function under this name
LITTLE = Budget(erf_images=2, timing_seconds=0.01, min_rounds=2, batch=2, stage_calls=1, cam_steps=2)


class Broken(nn.Module):
    """Takes no image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("its first line\nand more")


@pytest.fixture(scope="module")
def found(finished: Path, photos: Path) -> Comparison:
    """A trained run and a small model of timm's, on the run's data."""
    seen: list[tuple[str, float]] = []
    measured = compare(
        [finished, "resnet10t"],
        photos,
        accuracy={"resnet10t": 57.9},
        accuracy_source="a table",
        budget=LITTLE,
        image_size=64,
        device="cpu",
        on_progress=lambda text, share: seen.append((text, share)),
    )
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] <= 1
    assert any(text == "racnn_pico (finished): receptive fields" for text, _ in seen)
    return measured


def test_every_part_of_every_model_is_there(found: Comparison, finished: Path) -> None:
    run, other = found.models
    assert (run.label, run.weights, other.label, other.weights) == (
        "racnn_pico (finished)",
        "trained",
        "resnet10t",
        "random",
    )
    stored = json.loads((finished / "evaluation" / "evaluation.json").read_text())["top1"]
    assert run.accuracy is not None
    assert other.accuracy is not None
    assert (run.accuracy.top1, other.accuracy.top1, other.accuracy.source) == (stored, 0.579, "a table")
    for model in found.models:
        assert model.cost is not None
        assert sum(stage.params for stage in model.stages) == model.cost.cost.params
        assert all(stage.ms is not None for stage in model.stages)
        assert len(model.erfs) == len(model.stages) - 1
        assert [erf.layer for erf in model.erfs] == [stage.layer for stage in model.stages[:-1]]
        assert all(erf.image_size == (64, 64) and erf.count == 2 for erf in model.erfs)
        assert model.latency is not None
        assert model.throughput is not None
        assert (model.latency.setting.batch, model.throughput.setting.batch) == (1, 2)
    assert other.cost is not None
    assert other.cost.cost.macs == cost("resnet10t", image_size=64).macs
    assert run.throughput is not None
    assert run.throughput.ratio is not None
    assert run.throughput.ratio.median == 1
    assert found.notes == (module.RANDOM_WEIGHTS,)


def test_only_trained_weights_are_scored(found: Comparison) -> None:
    pytest.importorskip("pytorch_grad_cam")
    run, other = (model.cam for model in found.models)
    assert run is not None
    assert other is not None
    assert run.scores is not None
    assert other.scores is None
    assert run.class_name in ("blue", "green", "red")
    assert run.source == other.source


def test_a_comparison_is_a_table_a_file_a_page_and_a_picture(found: Comparison, tmp_path: Path) -> None:
    rows = found.to_rows()
    assert [row["part"] for row in rows if row["model"] == found.models[0].label] == [
        "model",
        *(f"stage {i}" for i in range(1, 5)),
        "head",
    ]
    assert all(row["torch"] == torch.__version__ for row in rows)
    with found.save(tmp_path / "a.csv").open(encoding="utf-8") as file:
        stored = list(csv.DictReader(file))
    assert [row["part"] for row in stored] == [row["part"] for row in rows]
    assert int(stored[0]["macs"]) == rows[0]["macs"]
    document = json.loads(found.save(tmp_path / "a.json").read_text())
    assert document == json.loads(json.dumps(found.to_dict()))
    assert document["models"][0]["top1"] == rows[0]["top1"]
    assert len(document["models"][0]["erf"]) == 4
    assert "racnn_pico (finished)" in found.save(tmp_path / "a.html").read_text(encoding="utf-8")
    with Image.open(found.plot(tmp_path / "a.png")) as picture:
        assert np.asarray(picture).std() > 5
    for name in ("a.txt", "a.gif"):
        with pytest.raises(ConfigError, match=r"must end in"):
            (found.save if name == "a.txt" else found.plot)(tmp_path / name)


def test_a_data_frame_and_a_picture_name_what_they_need(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = made_up((full_model("a", 4),))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="pip install pandas"):
        found.to_dataframe()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"fullfield\[look\]"):
        found.plot(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="nothing to draw"):
        plot_comparison(made_up((replace(found.models[0], throughput=None, accuracy=None),)), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_fails_is_named_with_the_reason_and_the_rest_goes_on() -> None:
    found = compare({"broken": Broken(), "good": TwoStages()}, image_size=32, budget=LITTLE, device="cpu")
    broken, good = found.models
    reasons = {(item.model, item.part): item.reason for item in found.not_measured}
    for part in ("cost", "stages", "erf", "speed"):
        assert ("broken", part) in reasons
        assert ("good", part) not in reasons
    assert reasons["broken", "cost"] == "its first line"
    assert reasons["", "cam"] == "it needs images, and no DATA was named"
    assert reasons["good", "accuracy"] == "no figure was given, and it is not a run with an evaluation"
    assert (broken.cost, broken.stages, broken.erfs, broken.latency, broken.accuracy) == (None, (), (), None, None)
    assert good.cost is not None
    assert good.throughput is not None
    assert good.throughput.ratio is None  # nothing else was timed
    assert len(good.erfs) == 2


def test_only_the_parts_asked_for_are_measured() -> None:
    found = compare({"a": TwoStages()}, image_size=32, parts=("cost",), device="cpu")
    (model,) = found.models
    assert model.cost is not None
    assert (model.stages, model.erfs, model.latency) == ((), (), None)
    skipped = [item.part for item in found.not_measured]
    assert skipped == [part for part in PARTS if part != "cost"]
    assert {item.reason for item in found.not_measured} == {"it was not asked for"}


def test_the_seed_decides_random_weights() -> None:
    arguments: dict[str, Any] = {"image_size": 64, "parts": ("erf",), "budget": LITTLE, "device": "cpu"}
    one, same, other = (compare(["resnet10t"], seed=seed, **arguments).models[0].erfs[0].map for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_models_are_left_as_they_were() -> None:
    model = TwoStages().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compare({"a": model}, image_size=32, budget=LITTLE, device="cpu")
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_runs_of_one_name_are_told_apart(finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "finished"
    other.symlink_to(finished)
    found = compare([finished, other], parts=("accuracy",), device="cpu")
    assert [model.label for model in found.models] == ["racnn_pico (finished)", str(other)]


def test_images_are_the_held_out_ones_or_all_of_a_plain_folder(photos: Path, tmp_path: Path) -> None:
    held_out = module._images_of(photos)
    assert held_out == [s.path for s in fullfield.data.read_image_data(photos).splits["val"]]
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    assert module._images_of(tmp_path) == [tmp_path / "a.jpg", tmp_path / "b.png"]


def test_ctrl_c_is_not_taken_for_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "cost_report", press)
    with pytest.raises(KeyboardInterrupt):
        compare({"a": TwoStages()}, image_size=32, parts=("cost",), device="cpu")


@pytest.mark.parametrize(
    ("models", "arguments", "kind", "says"),
    [
        ([], {}, ConfigError, "name at least one model"),
        (["resnet10t", "resnet10t"], {}, ConfigError, "resnet10t is named twice"),
        (["racnn_picco"], {}, ModelNotFoundError, "did you mean 'racnn_pico'"),
        (["nowhere/run"], {}, CheckpointError, "nowhere/run"),
        (["resnet10t"], {"parts": ("sped",)}, ConfigError, "did you mean 'speed'"),
        (["resnet10t"], {"parts": ("stages",)}, ConfigError, "needs the part 'cost'"),
        (["resnet10t"], {"parts": ()}, ConfigError, "nothing is to be measured"),
        (["resnet10t"], {"data": "nowhere"}, DataError, "'nowhere' does not exist"),
        (["resnet10t"], {"data": "sample:blood_cels"}, DataError, "blood_cells"),
        (["resnet10t"], {"accuracy": {"resnet10t": 70.0}}, ConfigError, "without a source"),
        (["resnet10t"], {"device": "warp"}, ConfigError, "'warp' can't be used"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_measured(
    models: list[str], arguments: dict[str, Any], kind: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_measure", lambda *_: pytest.fail("something was measured"))
    with pytest.raises(kind, match=says):
        compare(models, **{"device": "cpu", **arguments})


def test_an_empty_folder_and_an_impossible_budget_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no image"):
        compare(["resnet10t"], tmp_path, device="cpu")
    with pytest.raises(ConfigError, match="batch must be above 0, got 0"):
        Budget(batch=0)
