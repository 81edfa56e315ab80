"""A model taken apart: counts, times and bounds stand side by side, and add up."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fullfield
from fullfield.errors import ConfigError, ModelNotFoundError
from fullfield.measure import profile as profile_room
from fullfield.measure.cost_report import cost_report
from fullfield.measure.profile import profile
from fullfield.measure.roofline import Machine, bound_ms

MADE_UP = Machine("made up", 1, bytes_per_s=1e9, flops_per_s={"float32": 1e9})


@pytest.fixture(autouse=True)
def _made_up_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_room, "machine", lambda _device: MADE_UP)


def tiny() -> nn.Module:
    return fullfield.create_model("racnn_pico", dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_classes=5)


def test_bounds_and_counts_of_the_parts_add_up_to_the_whole() -> None:
    model = tiny()
    found = profile(model, batch=2, image_size=64, seconds=0.0, calls=1)
    report = cost_report(model, image_size=64)
    whole = bound_ms(report, MADE_UP, batch=2)
    assert found.rows[0].part == "total"
    assert found.rows[0].bound_ms == pytest.approx(whole)
    assert found.rows[0].ms == pytest.approx(found.latency.percentile_ms(50))
    for part in ("operator", "module"):
        rows = [row for row in found.rows if row.part == part]
        assert sum(row.bound_ms or 0 for row in rows) == pytest.approx(whole)
        assert sum(row.group.flops for row in rows) == report.cost.flops
        assert all(row.ms is not None for row in rows)
    for row in found.rows:
        if row.bound_ms is not None and row.ms:
            assert row.roofline_fraction == row.bound_ms / row.ms
    assert (found.memory.batch, found.memory.optimizer, found.memory.name) == (2, "adamw", "RaCNN")


def test_a_fused_model_is_counted_and_timed_in_the_form_that_runs() -> None:
    model = tiny().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain, fused = (profile(model, image_size=64, depth=6, seconds=0.0, calls=1, fused=f) for f in (False, True))
    assert fused.report.cost.params < plain.report.cost.params  # norms are folded into convolutions
    assert fused.kinds.setting.fused
    norms = []
    for found in (plain, fused):
        assert found.modules is not None
        norms.append(sum(row.kind.startswith("BatchNorm") for row in found.modules.rows))
    assert norms[0] > norms[1]
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_training_step_has_times_of_operators_and_no_bounds(tmp_path: Path) -> None:
    found = profile(tiny(), mode="train", batch=2, image_size=64, seconds=0.0, calls=1)
    assert found.modules is None
    assert all(row.bound_ms is None for row in found.rows)
    with found.save(tmp_path / "rows.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["mode"] == "train"
    assert float(rows[0]["ms"]) > 0
    assert int(rows[0]["training_total_bytes"]) == found.memory.total_bytes
    assert {"threads", "torch", "gbytes_per_s", "float32_gflops_per_s", "flops_per_byte"} <= rows[0].keys()


def test_a_precision_that_the_machine_was_not_measured_in_has_no_bounds() -> None:
    found = profile(nn.Conv2d(3, 4, 1), precision="bf16", image_size=8, seconds=0.0, calls=1)
    assert found.rows[0].bound_ms is None
    assert found.rows[0].ms is not None


def test_attention_that_runs_as_two_products_is_bound_with_them() -> None:
    class TwoProducts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            q = x.flatten(2).transpose(1, 2)  # (B, HW, C)
            return (q @ q.transpose(1, 2)).softmax(-1) @ q

    found = profile(TwoProducts(), image_size=8, seconds=0.0, calls=1)
    assert [row.group.name for row in found.rows if row.part == "operator"] == ["attention"]
    bounds = {row.name: row.bound_ms for row in found.kinds.rows if row.bound_ms is not None}
    assert bounds == {"matrix product": pytest.approx(found.rows[0].bound_ms)}


def test_bad_input_is_named() -> None:
    with pytest.raises(ModelNotFoundError, match="resnet50"):
        profile("resnet5O")
    with pytest.raises(ConfigError, match="depth must be at least 0, got -1"):
        profile(tiny(), depth=-1, image_size=32)
    with pytest.raises(ConfigError, match=r"RaCNN can't run train on 1 × 32×32"):
        profile(tiny(), mode="train", image_size=32, seconds=0.0)
    with pytest.raises(ConfigError, match="Conv2d has no fuse"):
        profile(nn.Conv2d(3, 4, 1), fused=True)
