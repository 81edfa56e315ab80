"""Saving a run's state within an epoch, by step, by time and when it is told to stop.

Ctrl-C and SIGTERM are taken note of, and acted on between two optimiser steps, where the state is whole. A state is
never saved in the middle of accumulated gradients, nor after an epoch's last step: the validation that follows belongs
to the epoch, and the state comes after it. With several processes all act on the same step: the first one's clock and
anyone's signal decide for all.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from fullfield.data import ImageBatch
from fullfield.tasks.run_folder import RunFolder
from fullfield.train.checkpoint import ENTRY, Position, prune_states, state_path
from fullfield.train.processes import Processes
from fullfield.train.settings import Interval

__all__ = ["StateKeeper", "StoppedError"]


class StoppedError(Exception):
    """The run was told to stop, and its state is saved.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.number = number


class StateKeeper(Callback):
    """Save the trainer's state after each epoch, at an interval, and on a signal. It must be the last callback.

    Args:
        run: Where.
        position: Of the run's start; what does not change in it is written with each state.
        every: The interval.
        processes: That train together.
    """

    def __init__(self, run: RunFolder, position: Position, every: Interval, processes: Processes) -> None:
        self.run = run
        self.start = position
        self.every = every
        self.processes = processes
        self._signal = 0
        self._saved_at = time.monotonic()
        self._saved_steps = position.steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the interval, and clear what an earlier start left behind."""
        self._saved_at = time.monotonic()
        self._saved_steps = trainer.global_step
        if self.processes.first:
            prune_states(self.run)

    @contextmanager
    def listening(self, trainer: pl.Trainer) -> Iterator[None]:
        """Take note of Ctrl-C and SIGTERM while the block runs, in the main thread; no other may set handlers.

        Lightning's own handlers stay out: theirs for SIGTERM speaks to the other processes, which a handler must not.
        """
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        stops = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        before = {number: signal.signal(number, self._note) for number in stops}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: ImageBatch, batch_idx: int
    ) -> None:
        """Save if it is time; save and stop if a signal came."""
        if trainer.fit_loop._should_accumulate():
            return
        stop, due = self.processes.sum([self._signal, self.processes.first and self._is_due(trainer)])
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        if stop or due:
            self._save(trainer, trainer.current_epoch, batch_idx + 1)
        if stop:
            raise StoppedError(self._signal or signal.SIGTERM)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the state of the whole epoch, and stop if a signal came."""
        (stop,) = self.processes.sum([self._signal])
        self._save(trainer, trainer.current_epoch + 1, 0)
        if stop:
            raise StoppedError(self._signal or signal.SIGTERM)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the position into the state."""
        checkpoint[ENTRY] = self._position.to_dict()

    def _save(self, trainer: pl.Trainer, epoch: int, batches: int) -> None:
        values = self.start.to_dict() | {"epoch": epoch, "batches": batches, "steps": trainer.global_step}
        self._position = Position(**values)
        trainer.save_checkpoint(state_path(self.run, trainer.global_step))
        if self.processes.first:
            prune_states(self.run)
        self._saved_at, self._saved_steps = time.monotonic(), trainer.global_step

    def _is_due(self, trainer: pl.Trainer) -> bool:
        if self.every.steps is not None:
            return trainer.global_step - self._saved_steps >= self.every.steps
        return time.monotonic() - self._saved_at >= (self.every.seconds or 0.0)

    def _note(self, number: int, _: FrameType | None) -> None:
        again = self._signal != 0
        self._signal = number
        if self.processes.size > 1:
            return  # the launcher repeats signals; it also ends what does not end by itself
        if again:  # what is on the disk is whole at any moment
            os._exit(128 + number)
        if self.processes.first:
            os.write(2, b"\nStopping after this step ... (once more: at once)\n")  # safe in a handler, unlike print
