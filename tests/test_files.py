"""Atomic writing: whatever happens while a file is written, the old one is whole and nothing else is left behind."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fullfield.errors import DataError, RunError
from fullfield.files import atomic_write, write_error, write_json


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    return path


def assert_untouched(path: Path) -> None:
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def raiser(number: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def write(path: Path, error: BaseException | None = None) -> None:
    """Write in two halves, with `error` in the middle."""
    with atomic_write(path) as partial:
        partial.write_bytes(b"n")
        if error is not None:
            raise error
        partial.write_bytes(b"new")


def test_file_is_replaced_and_the_temporary_one_is_gone(old: Path) -> None:
    with atomic_write(old) as partial:
        assert partial.parent == old.parent
        partial.write_bytes(b"new")
        assert old.read_bytes() == b"old"
    assert old.read_bytes() == b"new"
    assert [p.name for p in old.parent.iterdir()] == [old.name]


def test_file_is_made_where_there_was_none(tmp_path: Path) -> None:
    with atomic_write(str(tmp_path / "new.txt")) as partial:
        partial.write_text("new")
    assert (tmp_path / "new.txt").read_text() == "new"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_at_the_sync_leaves_the_old_file(old: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(os, "fsync", raiser(number))
    with pytest.raises(RunError, match=r"the disk is full.*previous version is intact.*Free some space") as caught:
        write(old)
    assert str(old) in str(caught.value)
    assert_untouched(old)


def test_full_disk_in_the_middle_of_writing_leaves_the_old_file(old: Path) -> None:
    with pytest.raises(RunError, match="the disk is full"):
        write(old, OSError(errno.ENOSPC, "No space left on device"))
    assert_untouched(old)


def test_full_disk_with_nothing_to_lose_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing was overwritten"):
        write(tmp_path / "new.bin", OSError(errno.ENOSPC, "No space left on device"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_folder_without_permission_is_named_with_a_remedy(
    old: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(Path, "replace", raiser(number))
    with pytest.raises(RunError, match=r"permission denied.*choose another folder"):
        write(old)
    assert_untouched(old)


def test_folder_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="can't be written"):
        write(tmp_path / "no" / "file")


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt(), DataError("bad image")], ids=repr)
def test_other_errors_pass_and_leave_the_old_file(old: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        write(old, error)
    assert caught.value is error
    assert_untouched(old)


def test_sync_that_the_file_system_does_not_know_is_no_error(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", raiser(errno.EINVAL))
    write(old)
    assert old.read_bytes() == b"new"


def test_kill_in_the_middle_leaves_the_old_file(old: Path) -> None:
    child = os.fork()
    if child == 0:
        with atomic_write(old) as partial:
            partial.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert old.read_bytes() == b"old"


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow beyond 200 kB, as where a disk is full; the libraries' own writing code meets the refusal."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def _torch_save(path: Path) -> None:
    with path.open("wb") as file:
        torch.save({"a": torch.zeros(100_000)}, file)


def _save_file(path: Path) -> None:
    save_file({"a": torch.zeros(100_000)}, path)


def _write_bytes(path: Path) -> None:
    path.write_bytes(bytes(400_000))


@pytest.mark.parametrize("save", [_torch_save, _save_file, _write_bytes])
def test_refused_write_is_found_behind_the_errors_of_the_libraries(
    old: Path, small_disk: None, save: Callable[[Path], None]
) -> None:
    with pytest.raises(RunError, match=r"can't be written: .*File too large"), atomic_write(old) as partial:
        save(partial)
    assert_untouched(old)


@pytest.mark.parametrize("name", ["x" * 255, "🦆" * 63, "写" * 80 + ".jpg", os.fsdecode(b"caf\xe9")], ids=ascii)
def test_longest_names_that_the_disk_takes_can_be_written(tmp_path: Path, name: str) -> None:
    try:
        (tmp_path / name).touch()
    except OSError:
        pytest.skip("this file system does not take such a name")
    with atomic_write(tmp_path / name) as partial:
        partial.write_text("new")
    assert (tmp_path / name).read_text() == "new"


def test_write_error_keeps_the_system_s_words() -> None:
    assert "Input/output error" in str(write_error(Path("a"), OSError(errno.EIO, os.strerror(errno.EIO))))


def test_json_is_utf8_and_reads_back(tmp_path: Path) -> None:
    document = {"名": ["é", 1, None, os.fsdecode(b"caf\xe9.jpg")]}
    write_json(tmp_path / "a.json", document)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "名" in text
    assert json.loads(text) == document


def test_json_that_can_not_be_made_leaves_the_old_file(old: Path) -> None:
    with pytest.raises(TypeError):
        write_json(old, {"a": object()})
    assert_untouched(old)
