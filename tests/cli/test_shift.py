"""`fullfield shift`: the tables, the picture, the files, and models side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from fullfield.cli.parse import parse
from fullfield.cli.shift import ShiftArguments, run
from fullfield.errors import CheckpointError, ConfigError
from fullfield.measure.shift import shift

SMALL = ["--count", "2", "--device", "cpu"]


def test_a_run_is_measured_drawn_and_written(
    finished: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([str(finished), "--images", str(photos), "--json", "shift.json", *SMALL]) == 0
    out, err = capsys.readouterr()
    assert "same likeliest class in pairs of shifted copies" in out
    assert "2 images of photos, 32×32 pixels, shifts of up to 5" in out
    assert "random weights" not in out
    assert f"picture: {tmp_path}/shift.png" in err
    with Image.open("shift.png") as picture:
        assert picture.format == "PNG"
    (stored,) = json.loads(Path("shift.json").read_text())
    assert stored == json.loads(json.dumps(shift(finished, photos, count=2, device="cpu").to_dict()))
    assert [stage["layer"] for stage in stored["stages"]] == [f"stages.{i}" for i in range(4)]
    assert stored["stages"][3]["circular"] is None  # one unit


def test_models_stand_side_by_side_and_noise_has_no_classes(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(finished), "mobilenetv3_small_050", "--image-size", "64", "--max-shift", "16", "--no-draw"]
    assert run([*argv, "--json", str(tmp_path / "shift.json"), *SMALL]) == 0
    first, second = json.loads((tmp_path / "shift.json").read_text())
    assert (first["weights"], second["weights"]) == ("trained", "random")
    assert first["circular"] is None
    out = capsys.readouterr().out
    assert "same likeliest class" not in out
    assert "random weights: the classes mean nothing" in out
    assert [p.name for p in tmp_path.iterdir()] == ["shift.json"]


def test_a_model_that_the_user_defines_in_a_file_is_measured(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from torch import nn\n\ndef net():\n    return nn.Conv2d(3, 4, 8, 8)\n")
    argv = [f"{tmp_path}/mine.py:net", "--layers", "output", "--image-size", "64", "--max-shift", "16", "--no-draw"]
    assert run([*argv, "--json", str(tmp_path / "shift.json"), *SMALL]) == 0
    (stored,) = json.loads((tmp_path / "shift.json").read_text())
    assert stored["stages"][0]["stride"] == [8.0, 8.0]
    assert stored["stages"][0]["cropped"]["mean"] < 1e-6  # patches without padding


@pytest.mark.parametrize(
    ("argv", "kind", "says"),
    [
        ([], ConfigError, "name at least one model: fullfield shift MODEL"),
        (["resnet18", "--layers", "layr4"], ConfigError, "did you mean 'layer4'"),
        (["resnet18", "--copies", "1"], ConfigError, "copies at least 2"),
        (["nowhere/run"], CheckpointError, "no checkpoint or run folder nowhere/run"),
        (["resnet18", "--out", "a.gif", "--layers", "layer1"], ConfigError, "must end in .png"),
    ],
)
def test_wrong_use_is_answered_with_the_way_out(
    argv: list[str], kind: type[Exception], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=says):
        run([*argv, "--image-size", "64", "--count", "1", "--device", "cpu"])
    assert list(tmp_path.iterdir()) == []


def test_several_models_come_before_the_options() -> None:
    arguments = parse(ShiftArguments, "shift", ["racnn_tiny", "resnet50", "--images", "a", "b", "--layers", "stages.3"])
    assert (arguments.models, arguments.images) == (("racnn_tiny", "resnet50"), ("a", "b"))
