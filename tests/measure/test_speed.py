"""`bench`: what is timed beside what, what a row says, and what is refused. No test looks at a time."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

import fullfield
from fullfield.errors import ConfigError, MissingExtraError, ModelNotFoundError
from fullfield.measure import cost
from fullfield.measure.cost_report import cost_report
from fullfield.measure.roofline import Machine, bound_ms
from fullfield.measure.runners import Setting, first_tensor, fused_copy, make_call
from fullfield.measure.speed import bench, setting_words

QUICK: dict[str, Any] = {"seconds": 0.0, "min_rounds": 2, "image_size": 64}


def tiny() -> nn.Module:
    return fullfield.create_model("racnn_pico", dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_classes=5)


def test_every_combination_is_one_row_and_fused_only_where_it_can_be() -> None:
    models = {"ours": tiny(), "plain": nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())}
    measured = bench(models, batch_sizes=(1, 2), modes=("forward", "train"), fused=True, **QUICK)
    found = {(r.model, r.setting.mode, r.setting.batch, r.setting.layout, r.setting.fused) for r in measured.rows}
    expected = {
        (model, mode, batch, layout, fused)
        for model in models
        for mode in ("forward", "train")
        for batch in (1, 2)
        for layout in ("nchw", "channels_last")
        for fused in (False, True)
        if not fused or (model == "ours" and mode == "forward")
    }
    assert found == expected
    assert len(measured.rows) == len(expected)


def test_ratios_are_to_the_peers_fastest_row_of_the_same_precision() -> None:
    measured = bench({"a": tiny(), "b": tiny()}, batch_sizes=(1,), precisions=("float32", "bf16"), **QUICK)
    assert measured.peer == "a"
    for precision in ("float32", "bf16"):
        fastest = measured.fastest("a", "forward", 1, precision)
        assert fastest.ratio is not None
        assert fastest.ratio.median == 1.0
    with pytest.raises(ConfigError, match="b was not timed in mode train"):
        measured.fastest("b", "train", 1)


def test_one_model_has_no_peer_and_a_named_peer_is_timed_too() -> None:
    assert all(row.ratio is None for row in bench(tiny(), batch_sizes=(1,), memory=False, **QUICK).rows)
    measured = bench({"a": tiny()}, vs="resnet10t", batch_sizes=(1,), memory=False, **QUICK)
    assert {row.model for row in measured.rows} == {"a", "resnet10t"}
    assert all(row.ratio is not None for row in measured.rows)


def test_a_row_carries_costs_units_and_the_environment(tmp_path: Path) -> None:
    model = tiny()
    measured = bench(model, batch_sizes=(2,), layouts=("nchw",), **QUICK)
    (row,) = measured.to_rows()
    assert row["params"] == sum(p.numel() for p in model.parameters())
    assert row["flops"] == 2 * row["macs"] > 0
    assert row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
    assert row["images_per_s"] == pytest.approx(2e3 / row["p50_ms"], rel=0.01)
    assert row["torch"] == torch.__version__
    assert {"device", "threads", "date", "fullfield"} <= row.keys()
    with measured.save(tmp_path / "rows.csv").open(encoding="utf-8") as file:
        (stored,) = csv.DictReader(file)
    assert stored["model"] == "RaCNN"
    assert json.loads(measured.save(tmp_path / "rows.json").read_text())[0]["macs"] == row["macs"]
    assert measured.plot(tmp_path / "speed.png").stat().st_size > 5000
    with pytest.raises(ConfigError, match=r"\.csv or \.json"):
        measured.save(tmp_path / "rows.xlsx")


def test_timing_leaves_the_model_as_it_was() -> None:
    model = tiny().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bench(model, batch_sizes=(1,), modes=("forward", "train"), fused=True, **QUICK)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"mode": "forwrad"}, "did you mean 'forward'"),
        ({"layout": "nhwc"}, "channels_last"),
        ({"precision": "float16"}, "fp16"),
        ({"backend": "tensorrt"}, "eager"),
        ({"batch": 0}, "at least 1"),
        ({"mode": "train", "fused": True}, "can't be trained"),
        ({"mode": "train", "backend": "openvino"}, "can't be trained"),
        ({"backend": "onnxruntime", "layout": "channels_last"}, "chooses its layouts"),
        ({"backend": "openvino", "device": "cuda"}, "on the CPU only, got device 'cuda'"),
    ],
)
def test_an_impossible_setting_is_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Setting(**arguments)


def test_an_unknown_model_and_a_missing_runtime_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelNotFoundError, match="did you mean"):
        bench(["resnet5O"], **QUICK)
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"fullfield\[export\]"):
        make_call(tiny(), Setting(image_size=(32, 32), backend="onnxruntime"))
    with pytest.raises(ConfigError, match="has no fuse"):
        make_call(nn.Conv2d(3, 4, 3), Setting(fused=True))


def test_a_call_runs_the_model_in_the_setting_it_names() -> None:
    seen: dict[str, Any] = {}

    class Probe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            y = self.conv(x)
            seen.update(shape=tuple(x.shape), dtype=y.dtype, training=self.training, grad=y.requires_grad)
            seen["channels_last"] = x.is_contiguous(memory_format=torch.channels_last)
            return {"map": y}

    make_call(Probe(), Setting(batch=2, image_size=(16, 20), layout="channels_last", precision="bf16"))()
    assert seen == {
        "shape": (2, 3, 16, 20),
        "dtype": torch.bfloat16,
        "training": False,
        "grad": False,
        "channels_last": True,
    }
    make_call(Probe(), Setting(mode="train", batch=2, image_size=(16, 20)))()
    assert seen["training"]
    assert seen["grad"]
    with pytest.raises(ConfigError, match="without a tensor"):
        first_tensor({"a": 1})


def test_a_setting_that_cannot_run_is_named_before_anything_is_timed() -> None:
    with pytest.raises(ConfigError, match=r"RaCNN can.t run train on 1 × 32×32, nchw float32: Exp"):
        bench(tiny(), batch_sizes=(1,), modes=("train",), image_size=32, seconds=0)


def test_every_setting_is_checked_before_the_first_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("timed")

    monkeypatch.setattr("fullfield.measure.speed.time_interleaved", never)
    for arguments, match in (
        ({"batch_sizes": (1, 0)}, "batch must be at least 1, got 0"),
        ({"batch_sizes": ()}, "nothing to time"),
        ({"modes": ("forward", "train"), "backends": ("openvino",)}, "no candidate runs train"),
        ({"modes": ("forward", "trian")}, "did you mean 'train'"),
    ):
        with pytest.raises(ConfigError, match=match):
            bench(tiny(), **QUICK | arguments)


def test_rows_have_the_cost_and_bound_of_the_form_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Machine("made up", 1, bytes_per_s=1e9, flops_per_s={"float32": 1e9})
    monkeypatch.setattr("fullfield.measure.speed.machine", lambda _device: here)
    model = fullfield.create_model("replknet_31b", dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_classes=5)
    measured = bench(
        model, batch_sizes=(2,), layouts=("nchw",), precisions=("float32", "bf16"), fused=True, roofline=True, **QUICK
    )
    rows = {(row.setting.fused, row.setting.precision): row for row in measured.rows}
    for fused, form in ((False, model), (True, fused_copy(model))):
        row = rows[fused, "float32"]
        assert row.cost.macs == cost(form, image_size=64).macs
        assert row.cost.params == sum(p.numel() for p in form.parameters())
        assert row.bound_ms == bound_ms(cost_report(form, image_size=64), here, batch=2)
        assert row.roofline_fraction == pytest.approx(row.bound_ms / row.samples.percentile_ms(50))
        assert rows[fused, "bf16"].bound_ms is None  # not measured on that machine
    assert rows[True, "float32"].cost.macs < rows[False, "float32"].cost.macs
    assert all(row["bound_ms"] is None for row in bench(model, batch_sizes=(1,), **QUICK).to_rows())


def test_a_size_that_a_model_can_not_run_at_is_named() -> None:
    with pytest.raises(ConfigError, match=r"RaCNN can't run at 0 pixels: .*Try another image size"):
        bench(tiny(), **QUICK | {"image_size": 0})


def test_attention_nets_of_a_fixed_size_are_set_to_the_size_that_is_timed() -> None:
    (row,) = bench("test_vit", batch_sizes=(1,), layouts=("nchw",), **QUICK | {"image_size": 96}).rows
    assert row.setting.image_size == (96, 96)


def test_what_can_not_be_compiled_says_so_and_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise BackendCompilerFailed(lambda: None, RuntimeError("No working C++ compiler found\nin this place"), None)

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    for mode in ("forward", "train"):
        with pytest.raises(
            ConfigError, match=r"torch.compile can't compile RaCNN here: No working C\+\+ .*g\+\+ or"
        ) as e:
            make_call(tiny(), Setting(mode, 2, (64, 64), backend="compile"))
        assert "in this place" not in str(e.value)


def test_what_can_not_be_written_as_onnx_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise torch.onnx.errors.OnnxExporterError("Failed to export\nthe model")

    for name in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name in ("SessionOptions", "InferenceSession"):
        setattr(sys.modules["onnxruntime"], name, type(name, (), {}))
    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(ConfigError, match=r"Conv2d can't be written as ONNX: Failed to export\. Time it with"):
        make_call(nn.Conv2d(3, 4, 1), Setting(image_size=(8, 8), backend="onnxruntime"))


@pytest.mark.slow
def test_compiled_models_give_the_eager_answer_at_every_batch_size() -> None:
    model = tiny().eval()
    for batch in (1, 2):
        setting = Setting("forward", batch, (64, 64))
        eager, compiled = make_call(model, setting), make_call(model, replace(setting, backend="compile"))
        torch.testing.assert_close(compiled(), eager(), atol=1e-4, rtol=1e-4)


def test_settings_are_told_in_words() -> None:
    assert setting_words(Setting(layout="channels_last", fused=True)) == "channels_last float32 fused"
    assert setting_words(Setting(backend="compile", precision="bf16")) == "nchw bf16 compile"
