"""The trainer's state on a full disk, damaged or missing: the one before is whole, and the run goes on from it."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import fullfield
from fullfield.errors import CheckpointError, RunError
from fullfield.tasks.run_folder import RunFolder
from fullfield.tasks.source import open_model
from fullfield.train.checkpoint import (
    AtomicCheckpointIO,
    Position,
    newest_state,
    prune_states,
    read_position,
    state_path,
)
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
        ("torch.save", torch.save, "step-00000006.ckpt"),
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
        with pytest.raises(
            RunError, match=r"the disk is full.*(previous version is intact|nothing was overwritten)"
        ) as caught:
            fullfield.train(photos, out=run, **TINY)
    assert str(checkpoints / file) in str(caught.value)
    assert sorted(p.name for p in checkpoints.iterdir()) == [
        "best.safetensors",
        "step-00000003.ckpt",
        "step-00000003.ckpt.sha256",
    ]
    assert read_position(checkpoints / "step-00000003.ckpt").epoch == 1
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
    with pytest.raises(CheckpointError, match=r"ended before it saved one. Start it again"):
        fullfield.train(resume=tmp_path / "run")


def position(**changes: Any) -> Position:
    return Position(**{**asdict(START), **changes})


START = Position(4, 0, 12, "racnn_pico", {}, {"classes": ["a", "b"]}, {"data": "photos"}, "0" * 32)


def write_state(run: RunFolder, steps: int) -> Path:
    path = state_path(run, steps)
    content = {"fullfield": position(steps=steps).to_dict(), "weights": torch.arange(1000) + steps}
    AtomicCheckpointIO().save_checkpoint(content, path)
    return path


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with the states of steps 9, 10 and 11."""
    run = RunFolder(tmp_path / "run")
    for steps in (9, 10, 11):
        write_state(run, steps)
    return run


def test_state_is_written_and_read_back_by_lightning_s_own_interface(run: RunFolder) -> None:
    loaded = AtomicCheckpointIO().load_checkpoint(run.states[0], weights_only=True)
    assert torch.equal(loaded["weights"], torch.arange(1000) + 11)
    assert read_position(run.states[0]) == position(steps=11)


def test_checksum_is_the_one_that_sha256sum_reads(run: RunFolder) -> None:
    for path in run.states:
        line = path.with_name(f"{path.name}.sha256").read_text()
        assert line == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"


def test_newest_state_is_found_and_older_ones_are_pruned(run: RunFolder) -> None:
    (run.checkpoints / ".step-00000012.ckpt.99.partial").write_bytes(b"half")
    prune_states(run)
    state, notes = newest_state(run)
    assert (state.path.name, state.position.steps, notes) == ("step-00000011.ckpt", 11, [])
    assert sorted(p.name for p in run.checkpoints.iterdir()) == [
        f"step-000000{n}.ckpt{end}" for n in (10, 11) for end in ("", ".sha256")
    ]


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path) -> None:
    path.write_text("not a checkpoint")


def _without_checksum(path: Path) -> None:
    path.with_name(f"{path.name}.sha256").unlink()


class Malice:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made-by-the-checkpoint",)


def _rewritten(path: Path, content: Any) -> None:
    """Replace a state by a whole file of another's, checksum and all."""
    AtomicCheckpointIO().save_checkpoint(content, path)


def _foreign(path: Path) -> None:
    _rewritten(path, {"model": {}})


def _tensor(path: Path) -> None:
    _rewritten(path, torch.zeros(3))


def _code(path: Path) -> None:
    _rewritten(path, {"fullfield": Malice()})


DAMAGE = [_truncated, _flipped, _empty, _text, _without_checksum, _foreign, _tensor, _code]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_newest_state_is_set_aside_and_the_one_before_is_used(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(run.path)
    damage(run.states[0])
    state, notes = newest_state(run)
    assert state.position.steps == 10
    assert len(notes) == 1
    assert "step-00000011.ckpt can't be read" in notes[0]
    assert "set aside as step-00000011.ckpt.damaged" in notes[0]
    assert (run.checkpoints / "step-00000011.ckpt.damaged").exists()
    assert newest_state(run) == (state, [])  # it is not looked at again
    assert not (run.path / "made-by-the-checkpoint").exists()


def test_nothing_but_damaged_states_is_said_with_what_is_left(run: RunFolder) -> None:
    for path in run.states:
        _truncated(path)
    with pytest.raises(CheckpointError, match=r"step-00000011.*step-00000009.*No other state is left.*--weights"):
        newest_state(run)


def test_run_without_a_state_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="ended before it saved one"):
        newest_state(RunFolder(tmp_path))


def test_positions_say_where_they_are() -> None:
    assert position().words == "epoch 4"
    assert position(batches=7).words == "step 7 of epoch 5"
