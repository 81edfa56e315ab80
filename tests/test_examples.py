"""The example programs run, end to end, on a net small enough for a test."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent


def test_demo_trains_evaluates_predicts_and_reports(tmp_path):
    words = [sys.executable, str(ROOT / "examples" / "demo.py"), "--out", str(tmp_path), "--epochs", "1"]
    words += ["--model-args", "dims=[8,16,24,32]", "depths=[1,1,1,1]"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Held-out top-1" in done.stdout
    assert "majority class 33.3%" in done.stdout
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    pictures = sorted((tmp_path / "predictions").glob("*.png"))
    assert len(pictures) == 3
    for picture in pictures:
        Image.open(picture).verify()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "says", "pictures"),
    [
        ("demo_detect.py", ("Held-out AP50", "AP of Platelets", "BloodImage_00007.jpg"), 6),
        ("demo_segment.py", ("Held-out mIoU", "IoU of nucleus"), 8),
    ],
)
def test_dense_demo_trains_evaluates_predicts_and_reports(tmp_path, program, says, pictures):
    words = [sys.executable, str(ROOT / "examples" / program), "--out", str(tmp_path), "--epochs", "1"]
    words += ["--image-size", "64", "--model-args", "dims=[8,16,24,32]", "depths=[1,1,1,1]"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line in says:
        assert line in done.stdout
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    drawn = sorted((tmp_path / "predictions").rglob("*.png"))
    drawn = [picture for picture in drawn if picture.parent.name != "masks"]
    assert len(drawn) == pictures
    for picture in drawn:
        Image.open(picture).verify()
