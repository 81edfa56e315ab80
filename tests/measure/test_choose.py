"""`choose`: budgets are kept, what can't meet them is not run, and every model left out says why.

Times are made up, except in one test that only checks that real ones are there.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fullfield.errors import ConfigError, DataError, MissingExtraError, ModelNotFoundError
from fullfield.measure.choose import Candidate, Choice, Limits, choose
from fullfield.measure.compare_speed import ToTime
from fullfield.measure.cost import Cost, cost
from fullfield.measure.roofline import Machine
from fullfield.measure.runners import Setting
from fullfield.measure.speed import SpeedRow
from fullfield.measure.timing import Samples

module = import_module("fullfield.measure.choose")  # the package may give the function under this name
MODELS = {  # MMACs, milliseconds, MB of weights
    "small_fast": (100, 2.0, 4.0),
    "small_slow": (110, 30.0, 4.0),
    "middle": (500, 9.0, 20.0),
    "near": (800, 12.0, 25.0),
    "large": (4000, 70.0, 100.0),
    "huge": (9000, 150.0, 300.0),
}
PEAK_MB = 10.0


PEAK = Machine(
    "made up", 1, bytes_per_s=1e9, flops_per_s={"float32": 200e9, "bf16": 1e15}
)  # 125 GMAC/s with the margin


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """A machine with six models of known speed; returns which were run, one entry a call of the timing."""
    ran: list[tuple[str, ...]] = []

    def count(name: str, classes: int | None, image_size: int | None) -> Cost:
        if name == "strange":
            raise RuntimeError("no such size\nat all")
        mmacs, _, megabytes = MODELS[name]
        return Cost(name, int(megabytes * 2**20 / 4), mmacs * 10**6, 2 * mmacs * 10**6, (3, 224, 224))

    def rows(models: Mapping[str, ToTime], *, on_failure: Callable[..., None], **settings: Any) -> dict[str, SpeedRow]:
        ran.append(tuple(models))
        return {
            name: SpeedRow(name, Setting(layout="nchw"), Samples((MODELS[name][1] / 1e3,) * 3), PEAK_MB, entry.cost)
            for name, entry in models.items()
        }

    class Info:
        def __init__(self, name: str) -> None:
            self.name = name

    class Model:
        def to(self, _: str) -> Model:
            return self

    monkeypatch.setattr(module, "machine", lambda _: PEAK)
    monkeypatch.setattr(module, "list_models", lambda _: [Info(name) for name in (*MODELS, "strange")])
    monkeypatch.setattr(module, "_counted", count)
    monkeypatch.setattr(module, "create_model", lambda _name, **_arguments: Model())
    monkeypatch.setattr(module, "fastest_rows", rows)
    return ran


def reasons(found: Choice) -> dict[str, str]:
    return {c.model: c.rejected for c in found.candidates if c.rejected}


def test_what_meets_the_latency_is_listed_most_macs_first(machine: list[tuple[str, ...]]) -> None:
    found = choose(latency_ms=10, device="cpu")
    assert [c.model for c in found.fitting] == ["middle", "small_fast"]
    assert reasons(found) == {
        "small_slow": "takes 30.0 ms of 10",
        "near": "takes 12.0 ms of 10",
        "large": "takes at least 32 ms of 10 by this machine's peak; not run",
        "huge": "takes at least 72 ms of 10 by this machine's peak; not run",
        "strange": "can't be built: no such size",
    }


def test_only_what_comes_near_the_budget_is_timed_against_each_other(machine: list[tuple[str, ...]]) -> None:
    choose(latency_ms=10, device="cpu")
    assert machine[:-1] == [("small_fast",), ("small_slow",), ("middle",), ("near",)]  # briefly, by MACs
    assert machine[-1] == ("small_fast", "middle", "near")


def test_memory_is_weights_and_a_call_and_size_needs_no_run(machine: list[tuple[str, ...]]) -> None:
    found = choose(memory_mb=30, device="cpu")
    assert [c.model for c in found.fitting] == ["middle", "small_slow", "small_fast"]  # near takes 25 + 10 MB
    assert reasons(found)["near"] == "takes 35 MB of 30"
    assert reasons(found)["large"] == "its weights take 100.0 MB of 30"
    assert not {"large", "huge"} & {name for group in machine for name in group}
    machine.clear()
    found = choose(size_mb=25, device="cpu")
    assert [c.model for c in found.fitting] == ["near", "middle", "small_slow", "small_fast"]
    assert machine == []


def test_all_budgets_together_are_kept(machine: list[tuple[str, ...]]) -> None:
    found = choose(latency_ms=100, memory_mb=40, size_mb=24, device="cpu")
    assert [c.model for c in found.fitting] == ["middle", "small_slow", "small_fast"]


def test_the_budget_is_of_a_call_whatever_its_batch(machine: list[tuple[str, ...]]) -> None:
    found = choose(latency_ms=10, batch=2, device="cpu")
    assert reasons(found)["near"] == "takes at least 13 ms of 10 by this machine's peak; not run"


def test_real_models_are_counted_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "machine", lambda _: PEAK)  # measuring it takes seconds
    seen: list[float] = []
    found = choose(
        "sample:blood_cells",
        latency_ms=1e5,
        memory_mb=1e4,
        size_mb=1e3,
        pattern="mobilenetv3_small_050",
        image_size=32,
        seconds=0.01,
        device="cpu",
        on_progress=lambda _, share: seen.append(share),
    )
    assert found.classes == 3
    (candidate,) = found.fitting
    counted = cost("mobilenetv3_small_050", image_size=32, num_classes=3)
    assert candidate.cost is not None
    assert (candidate.cost.params, candidate.cost.macs) == (counted.params, counted.macs)
    assert candidate.size_mb == pytest.approx(counted.params / 2**18)
    assert candidate.speed is not None
    assert len(candidate.speed.samples.seconds) >= 7
    assert candidate.memory_mb is None or candidate.memory_mb >= candidate.size_mb
    assert seen == sorted(seen)


def test_an_attention_net_of_a_fixed_size_is_set_to_another() -> None:
    found = choose(size_mb=1e3, image_size=160, pattern="vit_tiny_patch16_224")
    assert [(c.model, c.rejected) for c in found.candidates] == [("vit_tiny_patch16_224", "")]
    tokens = (160 // 16) ** 2
    assert found.candidates[0].cost is not None
    assert found.candidates[0].cost.macs > tokens * 12 * 12 * 192**2  # each token's linear layers in 12 blocks


@pytest.fixture
def choice() -> Choice:
    def candidate(name: str, rejected: str = "") -> Candidate:
        mmacs, ms, megabytes = MODELS[name]
        counted = Cost(name, int(megabytes * 2**18), mmacs * 10**6, 2 * mmacs * 10**6, (3, 224, 224))
        return Candidate(name, counted, SpeedRow(name, Setting(), Samples((ms / 1e3,) * 3), PEAK_MB, counted), rejected)

    candidates = (candidate("middle"), candidate("small_fast"), candidate("near", "takes 12.0 ms of 10"))
    env = {"device": "a made-up processor", "threads": "2", "torch": "2.11"}
    return Choice((*candidates, Candidate("strange", None, rejected="can't be built")), Limits(10.0), 3, 1, env)


def test_a_choice_is_a_table_a_file_and_a_picture(choice: Choice, tmp_path: Path) -> None:
    rows = choice.to_rows()
    assert [(row["model"], row["fits"]) for row in rows] == [
        ("middle", True),
        ("small_fast", True),
        ("near", False),
        ("strange", False),
    ]
    assert (rows[0]["p50_ms"], rows[0]["memory_mb"], rows[0]["limit_latency_ms"], rows[0]["threads"]) == (
        9,
        30,
        10,
        "2",
    )
    with choice.save(tmp_path / "a.csv").open(encoding="utf-8") as file:
        assert [row["model"] for row in csv.DictReader(file)] == [row["model"] for row in rows]
    assert json.loads(choice.save(tmp_path / "a.json").read_text()) == rows
    with Image.open(choice.plot(tmp_path / "a.png")) as picture:
        assert picture.size[0] > 500
    with pytest.raises(ConfigError, match=r"must end in \.png"):
        choice.plot(tmp_path / "a.gif")


def test_missing_libraries_are_named(choice: Choice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="pip install pandas"):
        choice.to_dataframe()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"fullfield\[look\]"):
        choice.plot(tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ({}, ConfigError, "no budget was named; set latency_ms, memory_mb or size_mb"),
        ({"latency_ms": 0.0}, ConfigError, "latency_ms must be above 0, got 0"),
        ({"size_mb": float("nan")}, ConfigError, "size_mb must be above 0, got nan"),
        ({"size_mb": 1.0, "image_size": 0}, ConfigError, "image_size must be at least 1, got 0"),
        ({"size_mb": 1.0, "batch": 0}, ConfigError, "batch must be at least 1"),
        ({"size_mb": 1.0, "pattern": "racnn_picco"}, ModelNotFoundError, "did you mean 'racnn_pico'"),
        ({"size_mb": 1.0, "data": "nowhere"}, DataError, "'nowhere' does not exist"),
        ({"size_mb": 1.0, "device": "warp"}, ConfigError, "'warp' can't be used"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        choose(**arguments)
