"""The trainer's state on a full disk, damaged or missing: the epoch before is whole, and the run goes on from it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import fullfield
from fullfield.errors import CheckpointError, RunError
from fullfield.tasks.source import open_model
from fullfield.train.checkpoint import AtomicCheckpointIO, checkpoint_epoch
from tests.images import TINY, best_weights, figures, same_weights

pytestmark = pytest.mark.usefixtures("better_every_epoch")


def full_at(second: int, write: Callable[..., None]) -> Callable[..., None]:
    """Return `write`, which writes a few bytes and fails for want of space at its call number `second`."""
    calls = 0

    def run_out(content: Any, where: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls != second:
            write(content, where, *args, **kwargs)
            return
        if isinstance(where, Path):
            where.write_bytes(b"half")
        else:
            where.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return run_out


@pytest.fixture
def uninterrupted(photos: Path, tmp_path: Path) -> Path:
    return fullfield.train(photos, out=tmp_path / "uninterrupted", **TINY).run


@pytest.mark.parametrize(
    ("target", "write", "file"),
    [
        ("torch.save", torch.save, "last.ckpt"),
        ("fullfield.models.weights.save_file", safetensors.torch.save_file, "best.safetensors"),
    ],
)
def test_full_disk_in_the_second_epoch_leaves_the_first_and_the_run_goes_on(
    photos: Path, tmp_path: Path, uninterrupted: Path, target: str, write: Callable[..., None], file: str
) -> None:
    run = tmp_path / "run"
    checkpoints = run / "checkpoints"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, full_at(2, write))
        with pytest.raises(RunError, match=r"the disk is full.*previous version is intact") as caught:
            fullfield.train(photos, out=run, **TINY)
    assert str(checkpoints / file) in str(caught.value)
    assert sorted(p.name for p in checkpoints.iterdir()) == ["best.safetensors", "last.ckpt"]
    assert checkpoint_epoch(checkpoints / "last.ckpt") == 1
    assert open_model(run).trained

    fullfield.train(resume=run)
    assert figures(run) == figures(uninterrupted)
    assert same_weights(best_weights(run), best_weights(uninterrupted))


def test_best_weights_after_a_full_disk_are_those_of_the_first_epoch(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    kept: list[bytes] = []

    def keep_then_fail(content: Any, where: Path, **kwargs: Any) -> None:
        if kept:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        safetensors.torch.save_file(content, where, **kwargs)
        kept.append(where.read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fullfield.models.weights.save_file", keep_then_fail)
        with pytest.raises(RunError, match="the disk is full"):
            fullfield.train(photos, out=run, **TINY)
    assert (run / "checkpoints" / "best.safetensors").read_bytes() == kept[0]


def test_full_disk_at_the_first_checkpoint_says_that_nothing_was_overwritten(photos: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.save", full_at(1, torch.save))
        with pytest.raises(RunError, match="nothing was overwritten"):
            fullfield.train(photos, out=tmp_path / "run", **TINY)
    with pytest.raises(CheckpointError, match=r"ended before its first epoch did. Start it again"):
        fullfield.train(resume=tmp_path / "run")


def test_state_is_written_and_read_back_by_lightning_s_own_interface(tmp_path: Path) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "new" / "last.ckpt"
    io.save_checkpoint({"epoch": 4, "tensor": torch.arange(3)}, path)
    assert checkpoint_epoch(path) == 5
    assert torch.equal(io.load_checkpoint(path, weights_only=True)["tensor"], torch.arange(3))
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def _truncated(path: Path) -> None:
    torch.save({"epoch": 3, "weights": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-2000])


def _empty(path: Path) -> None:
    path.touch()


def _text(path: Path) -> None:
    path.write_text("not a checkpoint")


def _foreign(path: Path) -> None:
    torch.save({"model": {}}, path)


def _tensor(path: Path) -> None:
    torch.save(torch.zeros(3), path)


class Malice:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made-by-the-checkpoint",)


def _code(path: Path) -> None:
    torch.save({"epoch": Malice()}, path)


@pytest.mark.parametrize("write", [_truncated, _empty, _text, _foreign, _tensor, _code])
def test_damaged_or_foreign_state_is_refused_and_runs_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "last.ckpt"
    write(path)
    with pytest.raises(CheckpointError, match=r"last\.ckpt can't be read.*--weights"):
        checkpoint_epoch(path)
    assert not (tmp_path / "made-by-the-checkpoint").exists()


def test_missing_state_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="ended before its first epoch"):
        checkpoint_epoch(tmp_path / "last.ckpt")
