"""`fullfield erf`: the table, the picture, the files, and models side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from fullfield.cli.erf import ErfArguments, run
from fullfield.cli.parse import parse
from fullfield.errors import CheckpointError, ConfigError
from fullfield.measure.erf import erf

SMALL = ["--count", "2", "--device", "cpu"]


def test_a_run_is_measured_drawn_and_written(
    finished: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([str(finished), "--images", str(photos), "--json", "erf.json", *SMALL]) == 0
    out, err = capsys.readouterr()
    assert "racnn_pico (finished)  stages.3  trained" in " ".join(out.split()).replace(" stages.3 ", "  stages.3  ")
    assert "2 images of photos, 32×32 pixels, preset fullfield" in out
    assert "random weights" not in out
    assert f"picture: {tmp_path}/erf.png" in err
    with Image.open("erf.png") as picture:
        assert picture.format == "PNG"
    (stored,) = json.loads(Path("erf.json").read_text())
    assert stored == json.loads(json.dumps(erf(finished, photos, count=2, device="cpu").to_dict()))


def test_models_stages_and_random_twins_stand_side_by_side(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(finished), "mobilenetv3_small_050", "--layers", "stages", "--random", "--image-size", "64"]
    assert run([*argv, "--json", str(tmp_path / "erf.json"), "--no-draw", *SMALL]) == 0
    rows = [(r["model"], r["weights"], r["layer"]) for r in json.loads((tmp_path / "erf.json").read_text())]
    stages = [f"stages.{i}" for i in range(4)]
    expected = [("racnn_pico (finished)", weights, s) for weights in ("trained", "random") for s in stages]
    assert rows[:8] == expected
    assert len(rows) == 8 + 2 * 5
    assert "random weights: the field shows the initialisation" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["erf.json"]


def test_layers_position_and_channel_reach_the_measurement(finished: Path, tmp_path: Path) -> None:
    argv = [
        "--layers",
        "stages.0",
        "stages.1.blocks.0",
        "--position",
        "1",
        "2",
        "--channel",
        "3",
        "--gradient",
        "signed",
    ]
    assert run([str(finished), *argv, "--json", str(tmp_path / "e.json"), "--no-draw", *SMALL]) == 0
    rows = json.loads((tmp_path / "e.json").read_text())
    assert [r["layer"] for r in rows] == ["stages.0", "stages.1.blocks.0"]
    assert all((r["position"], r["channels"], r["gradient"]) == ([1, 2], 3, "signed") for r in rows)


def test_layers_are_listed(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([str(finished), "--list-layers"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "stages.0 Stage 8 8×8" in out
    assert "stages.3 Stage 32 1×1" in out


def test_the_published_procedure_is_one_word(finished: Path, tmp_path: Path) -> None:
    argv = ["--preset", "replknet", "--image-size", "64", "--json", str(tmp_path / "erf.json"), "--no-draw"]
    assert run([str(finished), *argv, *SMALL]) == 0
    (stored,) = json.loads((tmp_path / "erf.json").read_text())
    assert (stored["preset"], stored["channels"], stored["gradient"]) == ("replknet", "relu", "positive")


def test_models_of_the_users_own_file_stand_beside_others(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\nplain = nn.Conv2d(3, 4, 5, padding=2)\ndef build(): return nn.Conv2d(3, 4, 3, 2, 1)\n"
    )
    argv = [f"{tmp_path}/net.py:plain", f"{tmp_path}/net.py:build", str(finished)]
    assert run([*argv, "--image-size", "32", "--no-draw", *SMALL]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "net.py:plain output unknown" in out
    assert "5×5 px net.py:build output unknown" in out
    assert "3×3 px racnn_pico (finished) stages.3 trained" in out


@pytest.mark.parametrize(
    ("argv", "kind", "says"),
    [
        ([], ConfigError, "name at least one model: fullfield erf MODEL"),
        (["resnet18", "--layers", "layr4"], ConfigError, "did you mean 'layer4'"),
        (["nowhere/net.py:build"], ConfigError, "there is no file nowhere/net.py"),
        (["nowhere/run"], CheckpointError, "no checkpoint or run folder nowhere/run"),
        (["resnet18", "--out", "erf.gif", "--image-size", "64", "--count", "1"], ConfigError, "must end in .png"),
    ],
)
def test_wrong_use_is_answered_with_the_way_out(
    argv: list[str], kind: type[Exception], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=says):
        run([*argv, "--device", "cpu"])
    assert list(tmp_path.iterdir()) == []


def test_several_models_come_before_the_options() -> None:
    arguments = parse(ErfArguments, "erf", ["racnn_tiny", "resnet50", "--images", "a", "b", "--layers", "stages"])
    assert (arguments.models, arguments.images) == (("racnn_tiny", "resnet50"), ("a", "b"))
