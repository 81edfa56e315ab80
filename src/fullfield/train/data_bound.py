"""Whether training waits for its images: the share of an epoch's time that goes by between two steps.

A step lies between `on_train_batch_start` and `on_train_batch_end`; what lies between two steps is waiting for the next
batch and moving it to the device. A GPU works on after the hooks have returned, and would hide a wait that costs
nothing or show a wait that was its own work; there the device is waited for, at every tenth batch only, because that
takes a little of the overlap away.
"""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from fullfield.data import ImageBatch

__all__ = ["DATA_BOUND_SHARE", "DataBound", "verdict"]

DATA_BOUND_SHARE = 0.1
"""From this share of the time on, waiting for images is worth mending."""
EVERY_ON_GPU = 10


def verdict(wait_s: float, step_s: float, images: int, workers: int) -> str:
    """Return in one line whether the step or the loader sets the pace, and what to do.

    Args:
        wait_s: Time spent waiting for `images`, seconds.
        step_s: Time spent in their steps, seconds.
        images: How many.
        workers: Processes that read images; with none, all reading is waiting, and its rate is known.

    Returns:
        The line; "" where nothing was measured.
    """
    if images < 1 or wait_s + step_s <= 0:
        return ""
    share = wait_s / (wait_s + step_s)
    step = _rate(images, step_s)
    if share < DATA_BOUND_SHARE:
        # workers that keep up are never seen at their fastest
        loader = f"loader could give {_rate(images, wait_s)} images/s" if workers == 0 else "the loader keeps up"
        return f"compute-bound: data {share:.0%} of the step ({loader}, the step takes {step})"
    loader = _rate(images, wait_s if workers == 0 else wait_s + step_s)
    return (
        f"data-bound: {share:.0%} of the time waits for images (the loader gives {loader} images/s, the step could take"
        f" {step}): more --workers, or `fullfield pack`"
    )


class DataBound(Callback):
    """Measure the share of time that steps wait for data, over each epoch.

    Put it last, so that what other callbacks do at the end of a step (saving the state, say) does not count as waiting.
    The first batch of an epoch, or of its rest after a restart, is left out: it waits for workers to start.

    Args:
        workers: Processes that read images, for the verdict.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.wait_s, self.step_s, self.images = 0.0, 0.0, 0
        self._ended: float | None = None  # when the last step did, if the next one is to be measured
        self._began: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget what was measured, also where an epoch goes on."""
        self._start_over()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the epoch's sums."""
        self._start_over()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: ImageBatch, batch_idx: int
    ) -> None:
        """End the wait."""
        if self._ended is not None:
            self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: ImageBatch, batch_idx: int
    ) -> None:
        """End the step, and begin the next wait."""
        on_gpu = pl_module.device.type == "cuda"
        next_is_measured = not on_gpu or batch_idx % EVERY_ON_GPU == 0
        if on_gpu and (self._began is not None or next_is_measured):
            torch.cuda.synchronize(pl_module.device)
        now = time.perf_counter()
        if self._began is not None and self._ended is not None:
            self.wait_s += self._began - self._ended
            self.step_s += now - self._began
            self.images += len(batch.images)
        self._began, self._ended = None, now if next_is_measured else None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave validation within an epoch out."""
        self._ended = None

    def row(self) -> dict[str, float]:
        """Return `data_wait`, the share of this epoch's time spent waiting; empty where it has one batch only."""
        total_s = self.wait_s + self.step_s
        return {"data_wait": self.wait_s / total_s} if self.images and total_s > 0 else {}

    def verdict(self) -> str:
        """Return the verdict on this epoch; "" where it has one batch only."""
        return verdict(self.wait_s, self.step_s, self.images, self.workers)

    def _start_over(self) -> None:
        self.wait_s, self.step_s, self.images = 0.0, 0.0, 0
        self._ended = self._began = None


def _rate(images: int, seconds: float) -> str:
    return f"{images / max(seconds, 1e-9):,.0f}"
