"""The trainer's states of a run: written whole or not at all, checked before use, and set aside when damaged.

A state is `checkpoints/step-00001234.ckpt`, named after the optimiser steps in it, with its SHA-256 beside it in the
form that `sha256sum -c` reads. The newest two are kept. Beside Lightning's own entries a state holds a
`Position`: what a run needs to go on from there, so that its start weights or its best weights may be gone.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from fullfield.errors import CheckpointError
from fullfield.files import atomic_write
from fullfield.tasks.run_folder import RunFolder

__all__ = ["AtomicCheckpointIO", "Position", "State", "newest_state", "prune_states", "read_position", "state_path"]

KEPT = 2
ENTRY = "fullfield"


@dataclass(frozen=True)
class Position:
    """Where a state stands, and what the run was when it was written; plain values only."""

    epoch: int
    """Whole epochs done."""
    batches: int
    """Batches of a single process done in the epoch after those; 0 between epochs."""
    steps: int
    """Optimiser steps done."""
    model: str
    """Registered name."""
    model_arguments: dict[str, Any]
    """Of `create_model`."""
    metadata: dict[str, Any]
    """What goes beside the best weights: classes, preprocessing."""
    settings: dict[str, Any]
    """Every setting as used."""
    data: str
    """Fingerprint of the lists of images, see `fullfield.train.resume`."""

    @property
    def words(self) -> str:
        """Where it stands, in words."""
        whole = f"epoch {self.epoch}"
        return f"step {self.batches} of epoch {self.epoch + 1}" if self.batches else whole

    def to_dict(self) -> dict[str, Any]:
        """Return the values under their names."""
        return asdict(self)


@dataclass(frozen=True)
class State:
    """A state that was found whole."""

    path: Path
    position: Position


class _Hashed:
    """A file to write to that hashes what it is given; PyTorch's writer needs no more than this."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint writer, through a temporary name, a sync, a checksum and a rename."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            RunError: The disk is full or the folder can't be written; the previous checkpoint is intact.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # through a file of Python's: given a path, torch does not say that the disk is full
        with atomic_write(path) as partial, partial.open("wb") as file:
            hashed = _Hashed(file)
            torch.save(checkpoint, hashed)  # type: ignore[arg-type]
            # before the state gets its name: a state without its checksum is never seen
            with atomic_write(_checksum(path)) as line:
                line.write_text(f"{hashed.sha256.hexdigest()}  {path.name}\n", encoding="utf-8")


def state_path(run: RunFolder, steps: int) -> Path:
    """Return the file of the state after so many optimiser steps."""
    return run.checkpoints / f"step-{steps:08d}.ckpt"


def newest_state(run: RunFolder) -> tuple[State, list[str]]:
    """Find the newest state that is whole.

    One that is damaged is renamed (`.damaged` at its end), so that it is never tried again and can be looked at.

    Returns:
        The state, and a sentence for each that was set aside.

    Raises:
        CheckpointError: There is none, or all are damaged.
    """
    notes: list[str] = []
    for path in run.states:
        try:
            return State(path, read_position(path)), notes
        except CheckpointError as error:
            path.rename(path.with_name(f"{path.name}.damaged"))
            _checksum(path).unlink(missing_ok=True)
            notes.append(f"{error}. It was set aside as {path.name}.damaged")
    if notes:
        raise CheckpointError(
            " ".join(notes) + ". No other state is left; the weights in best.safetensors can still start a new run:"
            " --weights"
        )
    raise CheckpointError(
        f"{run.checkpoints} holds no state to go on from: the run ended before it saved one. Start it again"
    )


def read_position(path: Path) -> Position:
    """Check a state against its checksum and read its position; no tensor is read and no code is run.

    Raises:
        CheckpointError: It is damaged, or was not written by `fullfield train`.
    """
    try:
        _verify(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return Position(**state[ENTRY])
    except Exception as error:  # torch.load raises many kinds for a damaged archive
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} can't be read ({reason}); it may be truncated") from error


def prune_states(run: RunFolder, keep: int = KEPT) -> None:
    """Delete all but the newest states, and what a killed process left half written."""
    for path in run.states[keep:]:
        path.unlink(missing_ok=True)
        _checksum(path).unlink(missing_ok=True)
    for partial in run.checkpoints.glob(".*.partial"):
        partial.unlink(missing_ok=True)


def _checksum(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _verify(path: Path) -> None:
    """Raise CheckpointError if the file is not the one that its checksum was taken of."""
    stored = _checksum(path)
    if not stored.is_file():
        raise CheckpointError(f"its checksum {stored.name} is missing")
    expected = stored.read_text(encoding="utf-8").split()[0]
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise CheckpointError("it is not what was written: its checksum differs")
