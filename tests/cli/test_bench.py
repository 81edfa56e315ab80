"""`fullfield bench`: what it prints, what it writes, and what it refuses. No test looks at a time."""

from __future__ import annotations

import csv
import functools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fullfield.cli.main import main
from fullfield.measure.op_speed import DepthwiseCase, bench_depthwise
from fullfield.measure.roofline import Machine

MADE_UP = Machine("made up", 1, bytes_per_s=1e10, flops_per_s={"float32": 1e11})
QUICK = ("--batch-sizes", "1", "--image-size", "64", "--seconds", "0.2", "--layouts", "nchw")
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run `fullfield bench` on a machine that need not be measured; return exit code, output and errors."""
    for room in ("speed", "profile"):
        monkeypatch.setattr(f"fullfield.measure.{room}.machine", lambda _device: MADE_UP)

    def run(*argv: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["bench", *(str(word) for word in argv)])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


def test_a_model_over_its_peer_is_a_ratio_with_its_spread(call: Call, tmp_path: Path) -> None:
    code, out, err = call("test_resnet", "--vs", "test_convnext", *QUICK, "--out", tmp_path / "rows.csv")
    assert code == 0
    line = next(line for line in out.splitlines() if line.split()[:1] == ["test_resnet"])
    assert re.search(r"\d\.\d\d × \(\d+\.\d\d–\d+\.\d\d\)$", line.rstrip())
    assert "1.00 × (1.00–1.00)" in out
    header = next(line for line in out.splitlines() if line.split()[:1] == ["model"])
    for column in ("images/s", "p50 ms", "p90 ms", "p99 ms", "memory MB", "of roofline", "speed / test_convnext"):
        assert column in header
    assert re.search(r"test_resnet: \d\.\d\d M parameters, \d\.\d{3} GMACs; test_convnext: ", " ".join(out.split()))
    assert "10th to 90th percentile" in out
    with (tmp_path / "rows.csv").open(encoding="utf-8") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {"test_resnet", "test_convnext"}
    for row in rows.values():
        assert float(row["roofline_fraction"]) == pytest.approx(float(row["bound_ms"]) / float(row["p50_ms"]), rel=0.05)
    assert f"written to {tmp_path / 'rows.csv'}" in err


def test_without_the_roofline_there_is_no_such_column(call: Call) -> None:
    code, out, _ = call("test_resnet", *QUICK, "--no-roofline", "--modes", "forward", "train")
    assert code == 0
    assert "training step, batch 1, 64×64" in out
    assert "of roofline" not in out
    assert "speed /" not in out


def test_cost_has_every_count_per_operator_and_module(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "nets.py"
    file.write_text(
        "import fullfield\n\n\ndef tiny():\n"
        "    return fullfield.create_model('racnn_pico', dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))\n",
        encoding="utf-8",
    )
    code, out, _ = call(f"{file}:tiny", *QUICK, "--cost", "--depth", "1", "--json", tmp_path / "cost.json")
    assert code == 0
    for column in ("params M", "GMACs", "GFLOPs", "softmax M", "MB moved", "FLOP/byte", "bound ms", "reached"):
        assert column in out
    for name in ("convolution", "depthwise convolution", "matrix product", "attention", "total", "stem", "stages"):
        assert re.search(rf"^ *{name} ", out, re.MULTILINE), name
    assert re.search(r"A training step of 2 images keeps \d+ MB: weights \d+, gradients \d+, AdamW \d+, act", out)
    assert re.search(r"module hooks misses \d+\.\d% of the MACs", out)
    rows = json.loads((tmp_path / "cost.json").read_text(encoding="utf-8"))
    total = rows[0]
    assert (total["part"], total["flops"]) == ("total", 2 * total["macs"])
    for part in ("operator", "module"):
        assert sum(row["macs"] for row in rows if row["part"] == part) == pytest.approx(total["macs"], abs=5)
    assert total["training_activation_bytes"] > 0
    assert total["roofline_fraction"] == pytest.approx(
        total["bound_ms"] / total["ms"],
        rel=0.01,
        abs=5.1e-5,  # it is stored with four digits
    )


def test_breakdown_has_times_per_operator_and_module(call: Call, tmp_path: Path) -> None:
    code, out, err = call("test_resnet", *QUICK, "--breakdown", "--plot", tmp_path / "times.svg")
    assert code == 0
    assert "test_resnet, forward, batch 1, nchw float32, per operator" in out
    assert "test_resnet, forward, batch 1, nchw float32, per module" in out
    for row in (r"convolution +\d", r"other +\d", r"layer1\.0 +BasicBlock +1 "):
        assert re.search(f"^ *{row}", out, re.MULTILINE), row
    assert "made up, 1 threads" in out
    assert "GMACs" not in out
    assert "layer1.0" in (tmp_path / "times.svg").read_text(encoding="utf-8")
    assert "drawn in" in err


def test_a_training_step_is_broken_down_by_operator_only(call: Call) -> None:
    code, out, _ = call("test_resnet", *QUICK, "--breakdown", "--modes", "train")
    assert code == 0
    assert "training step, batch 1, nchw float32, per operator" in out
    assert "per module" not in out


def test_several_models_are_taken_apart_one_after_the_other(call: Call) -> None:
    code, out, _ = call("test_resnet", "--vs", "test_convnext", *QUICK, "--cost", "--depth", "0")
    assert code == 0
    assert out.index("test_resnet, one image of 64×64") < out.index("test_convnext, one image of 64×64")


def test_an_operator_s_paths_are_timed(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = functools.partial(bench_depthwise, (DepthwiseCase((3, 3), 7),), batch=1, channels=4, rounds=1)
    monkeypatch.setattr("fullfield.cli.bench.bench_depthwise", few)
    code, out, _ = call("--op", "depthwise", "--out", tmp_path / "paths.csv", "--json", tmp_path / "paths.json")
    assert code == 0
    assert "depthwise_conv2d over F.conv2d, batch 1, 4 channels" in out
    assert re.search(r"^3x3 at 7 +channels_last ", out, re.MULTILINE)
    paths = {row["path"] for row in json.loads((tmp_path / "paths.json").read_text(encoding="utf-8"))}
    assert {"native", "fft", "rule"} <= paths
    assert (tmp_path / "paths.csv").read_text(encoding="utf-8").count("\n") > 10


def test_a_run_folder_is_timed_by_its_path(call: Call, finished: Path) -> None:
    code, out, _ = call(finished, *QUICK)
    assert code == 0
    assert str(finished) in out.replace("\n", "")


def test_a_model_of_the_user_s_own_file_is_timed_beside_a_registered_one(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "nets.py"
    file.write_text(
        "from torch import nn\n\n\ndef small():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n",
        encoding="utf-8",
    )
    rows = tmp_path / "rows.json"
    code, out, _ = call(f"{file}:small", "--vs", "test_resnet", *QUICK, "--json", rows)
    assert code == 0
    found = {row["model"]: row for row in json.loads(rows.read_text(encoding="utf-8"))}
    assert found.keys() == {f"{file}:small", "test_resnet"}
    assert found[f"{file}:small"]["macs"] == 62 * 62 * 27 * 4
    code, out, _ = call(f"{file}:small", *QUICK, "--cost", "--breakdown", "--depth", "1")
    assert code == 0
    assert re.search(r"^ *0 +Conv2d +1 ", out, re.MULTILINE)
    code, out, err = call(f"{file}:smal", *QUICK)
    assert (code, out) == (2, "")
    assert "did you mean 'small'" in err


@pytest.mark.parametrize("library", ["onnxruntime", "openvino"])
def test_a_missing_runtime_is_named_with_its_extra(call: Call, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    code, out, err = call("test_resnet", *QUICK, "--backends", "eager", library)
    assert (code, out) == (1, "")
    assert f"{library} is not installed; pip install 'fullfield[export]'" in err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ((), "name at least one model"),
        (("racnn_picco",), "did you mean 'racnn_pico'"),
        (("test_resnet", "--vs", "resnet5O"), "did you mean 'resnet50'"),
        (("test_resnet", "--layouts", "nhcw"), "layout must be one of nchw, channels_last, got 'nhcw'"),
        (("test_resnet", "--batch-sizes", "1", "0"), "batch must be at least 1, got 0"),
        (("test_resnet", "--backends", "onnxruntime", "--modes", "train"), "no candidate runs train"),
        (("test_resnet", "--image-size", "0"), "test_resnet can't run at 0 pixels"),
        (("test_resnet", "--threads", "0"), "threads must be at least 1, got 0"),
        (("test_resnet", "--device", "warp"), "'warp'"),
        (("test_resnet", "--cost", "--depth", "-1"), "depth must be at least 0, got -1"),
        (("test_resnet", "--cost", "--backends", "compile"), "leave out --backends"),
        (("test_resnet", "test_vit", "--cost", "--plot", "a.png"), "--plot draws one model"),
        (("test_resnet", "test_vitt", "--cost"), "did you mean 'test_vit"),
        (("test_resnet", "--breakdown", "--batch-sizes"), "--batch-sizes needs a value"),
        (("--op", "depthwize"), "--op is one of depthwise, got 'depthwize'; did you mean 'depthwise'"),
        (("test_resnet", "--op", "depthwise"), "takes no model; leave out test_resnet"),
        (("--op", "depthwise", "--breakdown"), "--breakdown is of models"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else None,
)
def test_bad_input_is_named_before_anything_is_timed(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], says: str
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("timed")

    monkeypatch.chdir(tmp_path)
    for room in ("speed", "profile"):
        monkeypatch.setattr(f"fullfield.measure.{room}.time_interleaved", never)
    threads = torch.get_num_threads()
    code, out, err = call(*argv)
    assert (code, out) in [(1, ""), (2, "")]
    assert says in err
    assert torch.get_num_threads() == threads
    assert list(tmp_path.iterdir()) == []
