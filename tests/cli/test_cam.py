"""`fullfield cam`: the table, the picture, the files, and images that can't be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from fullfield.cli.cam import CamArguments, run
from fullfield.cli.parse import parse
from fullfield.errors import CheckpointError, ConfigError, DataError
from fullfield.measure.cam import cam

CPU = ["--device", "cpu"]
FILE = """
from torch import nn

class Mine(nn.Sequential):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, 4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classify = nn.Linear(4, 3)
"""


def test_an_image_is_explained_drawn_and_written(
    finished: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    image = photos / "red" / "00.jpg"
    assert run([str(finished), str(image), "--steps", "4", "--json", "cam.json", *CPU]) == 0
    out, err = capsys.readouterr()
    assert f"{image}  red" in out
    assert "grad-cam  stages.2 2×2" in " ".join(out.split()).replace("grad-cam stages.2", "grad-cam  stages.2")
    assert "deletion: small is good, insertion: large is good" in out
    assert "random weights" not in out
    assert f"picture: {tmp_path}/cam.png" in err
    with Image.open("cam.png") as picture:
        assert picture.format == "PNG"
    (stored,) = json.loads(Path("cam.json").read_text())
    assert stored == json.loads(json.dumps(cam(finished, image, steps=4, device="cpu").to_dict()))
    assert stored["weights"] == "trained"


def test_methods_and_images_stand_side_by_side(finished: Path, photos: Path, tmp_path: Path) -> None:
    argv = [str(finished), str(photos / "red"), "--count", "2", "--methods", "all", "--target", "green"]
    argv += ["--layer", "stages.1", "--steps", "0", "--no-draw", "--json", str(tmp_path / "cam.json")]
    assert run([*argv, *CPU]) == 0
    rows = json.loads((tmp_path / "cam.json").read_text())
    methods = ["grad-cam", "eigen-cam", "hires-cam", "layer-cam"]
    assert [(Path(r["source"]).name, r["method"]) for r in rows] == [(f"0{i}.jpg", m) for i in (0, 1) for m in methods]
    assert all((r["class_name"], r["layer"], r["scores"]) == ("green", "stages.1", None) for r in rows)
    assert [p.name for p in tmp_path.iterdir()] == ["cam.json"]


def test_an_image_that_can_not_be_read_costs_only_itself(
    finished: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    argv = [str(finished), "broken.jpg", str(photos / "red" / "00.jpg"), "--steps", "0", *CPU]
    assert run(argv) == 1
    out, err = capsys.readouterr()
    assert "00.jpg" in out
    assert "broken.jpg" in err
    assert (tmp_path / "cam.png").exists()


def test_random_weights_are_told(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["mobilenetv3_small_050", str(photos / "red" / "00.jpg"), "--image-size", "64", "--steps", "0", "--no-draw"]
    assert run([*argv, *CPU]) == 0
    assert "random weights: the class and the map mean nothing" in capsys.readouterr().out


def test_a_model_that_the_user_defines_in_a_file_is_explained(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    argv = [f"{tmp_path}/mine.py:Mine", str(photos / "red" / "00.jpg"), "--image-size", "64", "--steps", "2"]
    assert run([*argv, "--no-draw", "--json", str(tmp_path / "cam.json"), *CPU]) == 0
    (stored,) = json.loads((tmp_path / "cam.json").read_text())
    assert (stored["layer"], stored["map_size"], stored["task"]) == ("conv", [16, 16], "classify")


@pytest.mark.parametrize(
    ("argv", "kind", "says"),
    [
        (["mobilenetv3_small_050", "nowhere.jpg"], DataError, "there is no image nowhere.jpg"),
        (["mobilenetv3_small_050"], DataError, "no image was given"),
        (["mobilenetv3_small_050", "a.png", "--methods", "gradcam"], ConfigError, "did you mean 'grad-cam'"),
        (["mobilenetv3_small_050", "a.png", "--layer", "blocs.3"], ConfigError, "did you mean 'blocks.3'"),
        (["mobilenetv3_small_050", "a.png", "--target", "tenhc"], ConfigError, "did you mean 'tench'"),
        (["mobilenetv3_small_050", "a.png", "--count", "0"], ConfigError, "count must be at least 1, got 0"),
        (["mobilenetv3_small_050", "a.png", "--out", "a.gif", "--steps", "0"], ConfigError, "must end in .png"),
        (["nowhere/run", "a.png"], CheckpointError, "no checkpoint or run folder nowhere/run"),
    ],
)
def test_wrong_use_is_answered_with_the_way_out(
    argv: list[str], kind: type[Exception], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "red").save("a.png")
    with pytest.raises(kind, match=says):
        run([*argv, "--image-size", "64", *CPU])
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_the_model_comes_before_the_images() -> None:
    arguments = parse(CamArguments, "cam", ["racnn_tiny", "a.jpg", "b", "--methods", "grad-cam", "layer-cam"])
    assert (arguments.model, arguments.images) == ("racnn_tiny", ("a.jpg", "b"))
    assert arguments.methods == ("grad-cam", "layer-cam")
