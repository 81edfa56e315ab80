"""Times per operator, kind and module: what is timed is what runs, nothing twice; no assertion on how fast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fullfield
from fullfield.errors import ConfigError
from fullfield.measure import breakdown
from fullfield.measure.breakdown import time_by_kind, time_by_module, time_by_operator
from fullfield.measure.cost_report import cost_report
from fullfield.measure.roofline import Machine, bound_ms
from fullfield.measure.runners import Setting

SMALL = Setting(image_size=(32, 32))
MADE_UP = Machine("made up", 1, bytes_per_s=1e9, flops_per_s={"float32": 1e9})


class Takes(nn.Module):
    """Advances a clock that only modules like it advance, then runs another module."""

    def __init__(self, clock: list[float], seconds: float, then: nn.Module | None = None) -> None:
        super().__init__()
        self.advance = lambda: clock.append(clock[-1] + seconds)  # a function, so that copies share the clock
        self.then = then or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        self.advance()
        return self.then(x)


@pytest.mark.parametrize(
    ("depth", "ms"),
    [
        (0, {"": 70}),
        (1, {"0": 60, "1": 10, "": 0}),
        (2, {"0.then": 40, "0": 20, "1.0": 10, "": 0, "1": 0, "1.1": 0}),
    ],
)
def test_time_goes_to_the_innermost_module_above_the_depth(
    depth: int, ms: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(breakdown.time, "perf_counter", lambda: clock[-1])
    model = nn.Sequential(Takes(clock, 0.02, Takes(clock, 0.04)), nn.Sequential(Takes(clock, 0.01), nn.ReLU()))
    found = time_by_module(model, SMALL, depth=depth, calls=3)
    assert {row.name: row.ms for row in found.rows} == pytest.approx(ms)
    assert list(found.rows) == sorted(found.rows, key=lambda row: -row.ms)


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    time_by_module(model, SMALL, calls=1)
    time_by_operator(model, Setting("train", 2, (8, 8)), calls=1)
    assert model.training
    assert not model[0]._forward_hooks
    assert not model[0]._forward_pre_hooks
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_operators_are_counted_as_often_as_they_run_and_depthwise_apart() -> None:
    model = fullfield.create_model("racnn_pico", depths=(1, 1, 1, 1))
    found = time_by_operator(model, SMALL, calls=2)
    kinds = {kind: sum(row.calls for row in found.rows if row.kind == kind) for kind in {r.kind for r in found.rows}}
    counted = {group.name: len(group.operators) for group in cost_report(model, image_size=32).by_operator()}
    for kind in ("convolution", "depthwise convolution", "matrix product"):
        assert kinds[kind] == counted[kind]
    assert kinds["attention"] == 4  # one RPWConv a block
    assert all(row.ms >= 0 for row in found.rows)


def test_a_training_step_shows_its_backward_operators() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(4 * 36, 5))
    found = time_by_operator(model, Setting("train", 2, (8, 8)), calls=1)
    backward = {row.kind: row.calls for row in found.rows if row.name == "aten::convolution_backward"}
    assert backward == {"convolution": 1, "depthwise convolution": 1}


def test_bounds_stand_beside_the_times_and_add_up_to_the_models() -> None:
    model = fullfield.create_model("racnn_pico", depths=(1, 1, 1, 1))
    setting = Setting(batch=2, image_size=(32, 32))
    whole = bound_ms(cost_report(model, image_size=32), MADE_UP, batch=2)
    for found in (
        time_by_kind(model, setting, calls=1, on=MADE_UP),
        time_by_module(model, setting, depth=3, calls=1, on=MADE_UP),
        time_by_module(model, setting, depth=0, calls=1, on=MADE_UP),
    ):
        assert sum(row.bound_ms or 0 for row in found.rows) == pytest.approx(whole)
        assert all(row.roofline_fraction == row.bound_ms / row.ms for row in found.rows if row.bound_ms is not None)


def test_a_breakdown_is_saved_as_a_table_and_drawn(tmp_path: Path) -> None:
    found = time_by_kind(nn.Conv2d(3, 4, 1), SMALL, calls=1, on=MADE_UP)
    rows = json.loads(found.save(tmp_path / "kinds.json").read_text(encoding="utf-8"))
    assert (rows[0]["name"], rows[0]["share"], rows[0]["model"]) == ("convolution", pytest.approx(1, abs=0.2), "Conv2d")
    assert sum(row["ms"] for row in rows) == pytest.approx(found.total_ms, abs=0.001)
    pytest.importorskip("matplotlib")
    assert "convolution" in found.plot(tmp_path / "kinds.svg").read_text(encoding="utf-8")


def test_bad_input_is_named() -> None:
    model = nn.Conv2d(3, 4, 1)
    with pytest.raises(ConfigError, match="compile has no modules or operators"):
        time_by_operator(model, Setting(backend="compile"))
    with pytest.raises(ConfigError, match="modules are timed forward only"):
        time_by_module(model, Setting("train"))
    with pytest.raises(ConfigError, match="depth must be at least 0, got -2"):
        time_by_module(model, SMALL, depth=-2)
    with pytest.raises(ConfigError, match="calls must be at least 1, got 0"):
        time_by_kind(model, SMALL, calls=0)
