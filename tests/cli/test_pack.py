"""`fullfield pack` makes shards that training and evaluation take like the folder, and says what it left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import fullfield
from fullfield.cli.main import main
from fullfield.data import read_image_data
from tests.images import TINY, write_photos

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run `fullfield pack ...`; return its exit code, standard output and standard error."""

    def run(*argv: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["pack", *map(str, argv)])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


def test_what_was_made_is_said(call: Call, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", each=6)
    code, out, err = call(tmp_path / "photos", tmp_path / "out", "--images-per-shard", "5")
    assert code == 0
    assert out.startswith("18 images in 4 files of together 0.1 MB: ")
    assert out.endswith(f"{tmp_path / 'out'}\n")
    assert "3 of 18 training images were set aside" in err
    _, out, _ = call(tmp_path / "photos", tmp_path / "out", "--images-per-shard", "5")
    assert "4 of them made before" in out


def test_images_left_out_are_named_and_fail_the_command(call: Call, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", each=6)
    for number in range(2):
        (tmp_path / "photos" / "red" / f"[b]{number}.jpg").write_bytes(b"")
    code, out, err = call(tmp_path / "photos", tmp_path / "out", "--check")
    assert code == 1
    assert out.startswith("18 images in 2 files")
    assert f"left out: {tmp_path / 'photos' / 'red' / '[b]0.jpg'}: is empty" in err
    assert f"2 images could not be read, all are in {tmp_path / 'out' / 'unreadable.csv'}" in err


@pytest.mark.parametrize(
    ("code", "argv", "says"),
    [
        (1, ("nowhere", "out"), "'nowhere' does not exist"),
        (2, ("sample:blood_cells", "out", "--shard-size", "big"), "shard_size is 'big'"),
        (2, ("sample:blood_cells", "out", "--max-side", "0"), "max_side must be at least 1"),
        (1, ("sample:blood_cells", "."), "is not a pack of Fullfield's"),
    ],
)
def test_errors_are_one_line(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, argv: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").touch()
    found, out, err = call(*argv)
    assert (found, out) == (code, "")
    assert says in err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_evaluating_on_shards_gives_the_figures_of_the_folder(
    call: Call, photos: Path, finished: Path, tmp_path: Path
) -> None:
    call(photos, tmp_path / "out")
    of_folder = fullfield.evaluate(finished, photos, split="val", device="cpu")
    of_shards = fullfield.evaluate(finished, tmp_path / "out", split="val", device="cpu")
    assert of_shards.result.scalars() == pytest.approx(of_folder.result.scalars(), abs=1e-6)
    assert len(of_shards.images) == len(read_image_data(photos).splits["val"])
    assert all("val-000000.tar" in str(image.path) for image in of_shards.images)


def test_shards_are_trained_on(call: Call, photos: Path, tmp_path: Path) -> None:
    call(photos, tmp_path / "out")
    result = fullfield.train(tmp_path / "out", out=tmp_path / "run", **TINY | {"epochs": 1})
    assert result.settings.data == str(tmp_path / "out")
    assert len(result.evaluation.images) == len(read_image_data(photos).splits["val"])
    assert not (tmp_path / "run" / "unreadable.csv").exists()
