"""`fullfield choose`: the table, the files, the next step, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fullfield.cli.choose import run
from fullfield.errors import ConfigError
from fullfield.measure.choose import choose

SMALL = ["--pattern", "mobilenetv3_small_0*", "--image-size", "64", "--device", "cpu"]


def test_what_fits_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["sample:blood_cells", "--size-mb", "3", *SMALL, "--json", str(tmp_path / "c.json")]
    assert run([*argv, "--out", str(tmp_path / "c.csv"), "--plot", str(tmp_path / "c.png")]) == 0
    out, err = capsys.readouterr()
    assert "mobilenetv3_small_050" in out
    assert "mobilenetv3_small_075" not in out
    assert "1 of 2 models meet size ≤ 3 MB with one image a call" in out
    assert "accuracy on your data is not known" in out
    assert "next: fullfield train sample:blood_cells --model mobilenetv3_small_050" in out
    assert "choosing: 0%, counting mobilenetv3_small_050" in err
    rows = json.loads((tmp_path / "c.json").read_text())
    assert [(row["model"], row["fits"]) for row in rows] == [
        ("mobilenetv3_small_050", True),
        ("mobilenetv3_small_075", False),
    ]
    expected = choose("sample:blood_cells", size_mb=3, pattern="mobilenetv3_small_0*", image_size=64, device="cpu")
    assert rows == json.loads(json.dumps(expected.to_rows()))
    assert {p.name for p in tmp_path.iterdir()} == {"c.json", "c.csv", "c.png"}


def test_all_lists_the_others_with_their_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--size-mb", "8", *SMALL, "--all"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "mobilenetv3_small_075" in words
    assert "its weights take 7.8 MB" not in words
    assert run(["--size-mb", "7", *SMALL, "--all"]) == 0
    assert "its weights take 7.8 MB of 7" in " ".join(capsys.readouterr().out.split())


def test_nothing_that_fits_is_an_exit_code_with_the_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--size-mb", "0.1", *SMALL]) == 1
    out, err = capsys.readouterr()
    assert "0 of 2 models meet size ≤ 0.1 MB" in out
    assert "next:" not in out
    assert "Allow more, or use a smaller --image-size" in err


def test_a_budget_is_needed() -> None:
    with pytest.raises(ConfigError, match="no budget was named"):
        run([])
