"""Writing the trainer's state atomically, so that a full disk or a kill leaves the previous checkpoint whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from fullfield.errors import CheckpointError
from fullfield.files import atomic_write

__all__ = ["AtomicCheckpointIO", "checkpoint_epoch"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint writer, through a temporary name and a rename."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            RunError: The disk is full or the folder can't be written; the previous checkpoint is intact.
        """
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # through a file of Python's: given a path, torch does not say that the disk is full
        with atomic_write(path) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)


def checkpoint_epoch(path: Path) -> int:
    """Return how many whole epochs a trainer checkpoint holds.

    Raises:
        CheckpointError: It is missing, damaged or not a trainer's.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: the run ended before its first epoch did. Start it again")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(state, dict):
            raise TypeError("it is not a trainer's state")
        return int(state["epoch"]) + 1
    except Exception as error:  # torch.load raises many kinds for a damaged archive
        raise CheckpointError(
            f"{path} can't be read ({str(error).splitlines()[0]}); it may be truncated. The weights in"
            " best.safetensors can still start a new run: --weights"
        ) from error
