"""`fullfield export`: the table, the next step, and exit codes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fullfield.cli.export as command
from fullfield.cli.export import run
from fullfield.deploy.description import Description
from fullfield.deploy.export import Exported
from fullfield.deploy.verification import Agreement, Checked, Latency, Verification, limits_for
from fullfield.errors import ConfigError

FOUND = Verification(
    file="net.onnx",
    task="classify",
    model="racnn_pico",
    precision="fp32",
    trained=True,
    megabytes=29.12,
    limits=limits_for("classify", "fp32", trained=True),
    engine="ONNX Runtime 1.31 on CPU",
    checked=(Checked(224, 224, 1, False, 3e-7), Checked(211, 229, 3, True, 8e-7)),
    agreement=Agreement("top-1", 1.0, 64, "val part of photos", 64, 3),
    latency=Latency(1, 224, 224, 50.0, 75.0, 1.5, 1.4, 1.6, 20),
    environment={"threads": "2"},
)
DESCRIPTION = Description("classify", "racnn_pico", ("a", "b"), {})


class Exports:
    """What `export` is replaced by: it keeps what it was asked for."""

    def __init__(self, found: Verification | None, description: Description = DESCRIPTION) -> None:
        self.found = found
        self.description = description
        self.asked: dict[str, Any] = {}

    def __call__(self, source: str, to: str, out: str | None, *, on_step: Any, **how: Any) -> Exported:
        self.asked = {"source": source, "to": to, "out": out, **how}
        on_step("writing [net].onnx")
        return Exported(Path("runs/[net].onnx"), self.description, self.found, 2.0)


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> Exports:
    fake = Exports(FOUND)
    monkeypatch.setattr(command, "export", fake)
    return fake


def words(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    out, err = capsys.readouterr()
    return " ".join(out.split()), " ".join(err.split())


def test_a_verified_file_is_printed_with_its_figures_and_the_next_step(
    exports: Exports, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["runs/photos", "--to", "onnx"]) == 0
    out, _ = words(capsys)
    for text in (
        "file runs/[net].onnx",
        "input any number of images of any size",
        "precision fp32",
        "size 29.12 MB",
        "difference 8.0e-07 of the largest output, at 224×224, 211×229 padded",
        "agreement top-1 100.00% over 64 images (val part of photos)",
        "latency 50.0 ms, 1.50 × eager PyTorch (1.40–1.60), batch 1, 224×224, 2 threads, ONNX Runtime 1.31 on CPU",
        "passed: difference at most 1e-04, agreement at least 100.0%",
        "next: fullfield predict runs/[net].onnx IMAGES",
    ):
        assert text in out
    assert exports.asked == {
        "source": "runs/photos",
        "to": "onnx",
        "out": None,
        "precision": "fp32",
        "size": None,
        "batch": None,
        "preprocessing_inside": False,
        "calibration": None,
        "images": None,
        "verify": True,
        "overwrite": False,
        "pretrained": False,
    }


def test_options_reach_the_function(exports: Exports, tmp_path: Path) -> None:
    argv = ["net", "--to", "openvino", "--precision", "int8", "--size", "256", "--batch", "4", "--out", "o.xml"]
    argv += ["--calibrate", "a", "b", "--images", "c", "--overwrite", "--pretrained", "--preprocessing-inside"]
    assert run([*argv, "--json", str(tmp_path / "v.json")]) == 0
    assert exports.asked["size"] == (256, 256)
    assert exports.asked["calibration"] == ("a", "b")
    assert exports.asked["images"] == ("c",)
    assert {"overwrite": True, "pretrained": True, "preprocessing_inside": True, "batch": 4}.items() <= (
        exports.asked.items()
    )
    assert json.loads((tmp_path / "v.json").read_text())["passed"] is True
    assert run(["net", "--to", "onnx", "--size", "96", "160"]) == 0
    assert exports.asked["size"] == (96, 160)
    with pytest.raises(ConfigError, match="--size has 3 numbers"):
        run(["net", "--to", "onnx", "--size", "1", "2", "3"])


def test_a_file_that_fails_is_an_exit_code_and_says_what_differs(
    exports: Exports, capsys: pytest.CaptureFixture[str]
) -> None:
    exports.found = replace(FOUND, checked=(Checked(224, 224, 1, False, 0.01),))
    assert run(["net", "--to", "onnx"]) == 1
    out, err = words(capsys)
    assert "failed: at 1 × 224×224 pixels the outputs differ by 1.0e-02 of the largest; fp32 allows 1e-04" in err
    assert "file runs/[net].onnx" in out
    assert "next:" not in out
    assert "passed" not in out


def test_what_could_not_be_run_or_was_not_to_be_is_said(exports: Exports, capsys: pytest.CaptureFixture[str]) -> None:
    exports.found = replace(FOUND, checked=(), agreement=None, latency=None, not_run="Core ML computes on macOS alone")
    assert run(["net", "--to", "coreml"]) == 0
    assert "not run here, so not verified: Core ML computes on macOS alone" in words(capsys)[1]
    exports.found = None
    assert run(["net", "--to", "onnx", "--no-verify"]) == 0
    out, err = words(capsys)
    assert "not verified: nothing is known of what the file gives" in err
    assert "latency" not in out


def test_random_weights_and_empty_answers_are_not_sold_as_more(
    exports: Exports, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = limits_for("detect", "int8", trained=False)
    nothing = Agreement("objects", 1.0, 16, "sample:blood_cells_boxes", 0, 0)
    exports.found = replace(FOUND, precision="int8", trained=False, limits=limits, agreement=nothing)
    exports.description = replace(DESCRIPTION, precision="int8", trained=False, height=96, width=160, batch=1)
    assert run(["net", "--to", "onnx"]) == 0
    out, err = words(capsys)
    assert "input 1 image, 96 × 160 pixels" in out
    assert "precision int8, random weights" in out
    assert "passed: finite outputs; random weights are asked for no more" in out
    assert "neither found an object in these images" in err
