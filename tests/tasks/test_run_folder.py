"""The run folder: made where nothing is lost, and nothing that Fullfield did not write is ever deleted."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fullfield.errors import DataError, RunError
from fullfield.tasks.run_folder import RunFolder, read_run_data
from tests.images import write_photos


def fake_run(path: Path) -> Path:
    (path / "checkpoints").mkdir(parents=True)
    (path / "evaluation").mkdir()
    for name in ("config.yaml", "metrics.csv", "unreadable.csv", "report.html", "checkpoints/step-00000009.ckpt"):
        (path / name).write_text("old")
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_new_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "a" / "b" / "run")
    assert sorted(p.name for p in run.path.iterdir()) == ["checkpoints"]


def test_empty_folder_is_taken(tmp_path: Path) -> None:
    assert RunFolder.create(tmp_path).path == tmp_path


def test_run_is_never_overwritten_unasked(tmp_path: Path) -> None:
    path = fake_run(tmp_path / "run")
    before = contents(path)
    with pytest.raises(RunError, match=rf"{path} exists.*--out.*--resume {path}.*--overwrite"):
        RunFolder.create(path)
    assert contents(path) == before


def test_overwrite_clears_a_run(tmp_path: Path) -> None:
    path = fake_run(tmp_path / "run")
    RunFolder.create(path, overwrite=True)
    assert contents(path) == {}


def test_overwrite_leaves_what_is_not_part_of_the_run(tmp_path: Path) -> None:
    path = fake_run(tmp_path / "run")
    (path / "notes.txt").write_text("mine")
    (path / "photos").mkdir()
    (path / "photos" / "a.jpg").write_text("mine too")
    RunFolder.create(path, overwrite=True)
    assert set(contents(path)) == {"notes.txt", "photos/a.jpg"}


@pytest.mark.parametrize(
    "files", [["thesis.tex"], ["config.yaml", "main.py"], ["checkpoints/model.pt", "a.py"]], ids=str
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_that_is_not_a_run_is_never_touched(tmp_path: Path, files: list[str], overwrite: bool) -> None:
    path = tmp_path / "project"
    for name in files:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("precious")
    before = contents(path)
    with pytest.raises(RunError, match="is not a run; nothing was written"):
        RunFolder.create(path, overwrite=overwrite)
    assert contents(path) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_file_in_the_folder_s_place_is_left_alone(tmp_path: Path, overwrite: bool) -> None:
    file = tmp_path / "run"
    file.write_text("precious")
    with pytest.raises(RunError, match="is not a run; nothing was written"):
        RunFolder.create(file, overwrite=overwrite)
    assert file.read_text() == "precious"


def test_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(RunError, match="can't be written"):
        RunFolder.create(tmp_path / "file" / "run")


def _mkdir(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Path, "mkdir", refuse)


def _touch(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Path, "touch", refuse)


@pytest.mark.parametrize("refuse", [_mkdir, _touch])
@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EACCES, "permission denied.*choose another folder"),
        (errno.EROFS, "permission denied"),
        (errno.ENOSPC, "the disk is full"),
    ],
)
def test_folder_that_can_not_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuse: Callable[..., None], number: int, says: str
) -> None:
    refuse(monkeypatch, OSError(number, os.strerror(number)))
    with pytest.raises(RunError, match=says) as caught:
        RunFolder.create(tmp_path / "run")
    assert str(tmp_path / "run") in str(caught.value)


def test_folder_that_can_not_be_listed_or_deleted_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fake_run(tmp_path / "run")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", refuse)
        with pytest.raises(RunError, match="permission denied"):
            RunFolder.create(path, overwrite=True)
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(RunError, match="permission denied"):
        RunFolder.create(path)


def test_name_too_long_for_the_disk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="can't be written"):
        RunFolder.create(tmp_path / ("x" * 300))


def test_name_that_is_not_utf8_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"not UTF-8.*--out"):
        RunFolder.create(tmp_path / os.fsdecode(b"caf\xe9"))
    assert list(tmp_path.iterdir()) == []


def test_next_free_is_the_first_number_that_is_not_taken(tmp_path: Path) -> None:
    assert RunFolder.next_free(tmp_path / "runs", "m").name == "m-1"
    (tmp_path / "m-1").mkdir()
    (tmp_path / "m-2").write_text("a file counts too")
    (tmp_path / "m-4").mkdir()
    assert RunFolder.next_free(tmp_path, "m") == tmp_path / "m-3"


def test_open_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        RunFolder.open(tmp_path / "nothing")
    with pytest.raises(RunError, match=r"no config\.yaml.*fullfield train"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [(b"a: [", "can't be read"), (b"\xff\xfe\x00", "can't be read"), (b"", "not a list"), (b"- a", "not a list")],
)
def test_damaged_config_is_named(tmp_path: Path, text: bytes, says: str) -> None:
    (tmp_path / "config.yaml").write_bytes(text)
    with pytest.raises(RunError, match=says) as caught:
        RunFolder.open(tmp_path).read_config()
    assert str(tmp_path / "config.yaml") in str(caught.value)


def test_config_without_its_data_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: racnn_pico\n")
    with pytest.raises(RunError, match="lacks data, seed, val_share"):
        read_run_data(tmp_path)


def test_data_that_has_moved_is_named(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", each=2)
    (tmp_path / "config.yaml").write_text(f"data: {photos}\nval_share: 0.5\nseed: 0\n")
    assert read_run_data(tmp_path).counts("val") == [1, 1, 1]
    photos.rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"photos' does not exist"):
        read_run_data(tmp_path)
