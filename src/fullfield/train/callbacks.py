"""What watches a run: averaging weights, keeping the best and the last state, and refusing to train on ruins.

Order matters: `RunKeeper` must come before the averaging callback, because Lightning puts the averaged weights
into the model for validation and takes them out again in the same hook in which the best ones are saved.
"""

from __future__ import annotations

import copy
import csv
import math
import time
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, WeightAveraging
from torch import Tensor

from fullfield.data import Unreadable
from fullfield.errors import TrainingError
from fullfield.files import atomic_write
from fullfield.progress import Advance, console, image_progress
from fullfield.tasks.run_folder import RunFolder
from fullfield.tasks.task import Result
from fullfield.train.data_bound import DataBound
from fullfield.train.kinds.kind import Kind
from fullfield.train.module import TrainModule
from fullfield.train.processes import ALONE, Processes

__all__ = [
    "Patience",
    "RunKeeper",
    "ScreenProgress",
    "UnreadableImages",
    "averaging",
    "history_columns",
    "read_history",
]


def warmed_decay(decay: float, updates: int) -> float:
    """Return the decay of an average after so many updates: it starts at 0.1 and rises to `decay`."""
    return min(decay, (1 + updates) / (10 + updates))


def averaging(decay: float, kind: type[WeightAveraging] = WeightAveraging) -> WeightAveraging:
    """Return Lightning's exponential moving average of weights and BatchNorm statistics, with warm-up.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), so that short runs are not averaged with their
    random start.

    Args:
        decay: Of the average, less than 1.
        kind: Lightning's callback, or one made from it.
    """

    def average(averaged: Tensor, current: Tensor, updates: int | Tensor) -> Tensor:
        n = int(updates)
        if not averaged.is_floating_point():
            return current
        return torch.lerp(averaged, current.to(averaged.dtype), 1 - warmed_decay(decay, n))

    return kind(use_buffers=True, avg_fn=average)


class RunKeeper(Callback):
    """Write metrics.csv and the best weights after every epoch.

    The epoch's sums are over all processes and grow by the step, so that a run that was continued within an epoch
    adds the same numbers in the same order as one that was not.

    Args:
        run: Where.
        kind: Of task.
        metadata: What goes beside the weights (classes, preprocessing).
        processes: That train together; the first one writes.
        waits: Tells what share of the time went into waiting for images.
    """

    def __init__(
        self,
        run: RunFolder,
        kind: Kind,
        metadata: dict[str, Any],
        processes: Processes = ALONE,
        waits: DataBound | None = None,
    ) -> None:
        self.run = run
        self.kind = kind
        self.metadata = metadata
        self.processes = processes
        self.waits = waits
        self.best_score = -1.0
        self.best_epoch = 0
        self._loss_sum, self._images, self._seconds, self._start = 0.0, 0, 0.0, 0.0
        self._result: Result | None = None

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart."""
        return {
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "loss_sum": self._loss_sum,
            "images": self._images,
            "seconds": self._seconds + time.perf_counter() - self._start,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.best_score, self.best_epoch = state_dict["best_score"], state_dict["best_epoch"]
        self._loss_sum, self._images = state_dict["loss_sum"], state_dict["images"]
        self._seconds = state_dict["seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, also where an epoch goes on."""
        self._start = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the epoch's sums; not called where an epoch goes on."""
        self._loss_sum, self._images, self._seconds, self._start = 0.0, 0, 0.0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the batch to the epoch's sums."""
        if isinstance(pl_module, TrainModule):
            loss, images = self.processes.sum([pl_module.batch_loss * len(batch.images), len(batch.images)])
            self._loss_sum += loss
            self._images += int(images)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights if they are the best so far; they are the averaged ones here."""
        if not isinstance(pl_module, TrainModule):
            return
        result = self._result = pl_module.validation_result()
        if not result.images:
            raise TrainingError("not one validation image can be read; see unreadable.csv in the run folder")
        loss = result.scalars().get("loss", 0.0)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the validation loss is {loss} after epoch {trainer.current_epoch + 1}; the last good weights"
                " are kept. Try a lower --lr, --clip-grad 1, or --precision 32; for RaCNN --model-args layer_scale=0.1"
            )
        if result.score > self.best_score:
            self.best_score, self.best_epoch = result.score, trainer.current_epoch + 1
            figures = {"epoch": self.best_epoch, f"val_{self.kind.score}": result.score, "val_images": result.images}
            model = pl_module.whole_model()
            if self.processes.first and model is not None:
                if any(p.dtype == torch.float64 for p in model.parameters()):  # for checks; it is used in float32
                    model = copy.deepcopy(model).float()
                self.kind.save(model, self.run.best, {**self.metadata, **figures})

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add a row to metrics.csv; a restart drops rows that have no state."""
        seconds = self._seconds + time.perf_counter() - self._start
        result = self._result
        row: dict[str, Any] = {
            "epoch": trainer.current_epoch + 1,
            "lr": max(group["lr"] for group in trainer.optimizers[0].param_groups),  # with layer decay, the head's
            "train_loss": self._loss_sum / max(self._images, 1),
            "images_per_s": self._images / seconds,
            "seconds": seconds,
        }
        if result is not None:
            row |= self.kind.row(result)
        if self.waits is not None:
            row |= self.waits.row()
        if self.processes.first:
            _append_row(self.run, row, self.kind.columns)


class UnreadableImages(Callback):
    """Count images that could not be read, list them in the run folder, and stop when they are too many.

    Args:
        run: Where.
        limit: So many training images may be unreadable.
        total: Training images in all, for the message.
        processes: That train together; each counts what any of them found.
    """

    def __init__(self, run: RunFolder, limit: int, total: int, processes: Processes = ALONE) -> None:
        self.run = run
        self.limit = limit
        self.total = total
        self.processes = processes
        self._found: list[Unreadable] = []  # in this validation pass, by this process
        self.train: dict[str, str] = {}
        self.val: dict[str, str] = {}

    @property
    def all(self) -> list[tuple[str, str]]:
        """Path and reason of every one so far."""
        return list((self.train | self.val).items())

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart."""
        return {"train": dict(self.train), "val": dict(self.val)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.train, self.val = dict(state_dict["train"]), dict(state_dict["val"])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the batch's unreadable images.

        Raises:
            TrainingError: There are more than the limit.
        """
        (found,) = self.processes.sum([len(batch.unreadable)])
        if not found:
            return
        for unreadable in self.processes.collect(batch.unreadable):
            self._note(self.train, unreadable)
        if len(self.train) > self.limit:
            path, reason = next(iter(self.train.items()))
            raise TrainingError(
                f"{len(self.train)} of {self.total} training images can't be read, more than --max-bad allows"
                f" ({self.limit}). The first: {path}: {reason}. All are listed in {self.run.unreadable}. Mend or"
                " remove them, or raise --max-bad"
            )

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Remember the batch's unreadable images."""
        self._found += batch.unreadable

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the pass's unreadable images, of all processes, which may have had different numbers of batches."""
        found, self._found = self._found, []
        for unreadable in self.processes.collect(found):
            self._note(self.val, unreadable)

    def _note(self, seen: dict[str, str], unreadable: Sequence[Unreadable]) -> None:
        fresh = {bad.path: bad.reason for bad in unreadable if bad.path not in seen}
        if not fresh:
            return
        seen |= fresh
        if not self.processes.first:
            return
        with (
            atomic_write(self.run.unreadable) as partial,
            partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
        ):
            csv.writer(file).writerows([("path", "reason"), *self.all])


class Patience(EarlyStopping):
    """Stop after `patience` epochs without a better score; a run that was stopped so stays stopped when resumed.

    The check comes with validation, before `RunKeeper` saves the epoch's state, so that the count is in it.

    Args:
        patience: Epochs.
        score: Its name, such as top1.
    """

    def __init__(self, patience: int, score: str = "top1") -> None:
        super().__init__(f"val_{score}", mode="max", patience=patience, check_on_train_epoch_end=False)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go no further if patience ended before a restart."""
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience


class ScreenProgress(Callback):
    """A bar over the whole run with images/s and time left, and one line an epoch.

    Args:
        images: Training images an epoch.
        epochs: In all.
        seen: Images trained on before this start.
        processes: That train together; the first one has the screen.
    """

    def __init__(self, images: int, epochs: int, seen: int = 0, processes: Processes = ALONE) -> None:
        self.images = images
        self.epochs = epochs
        self.seen = seen
        self.processes = processes
        self._open: Any = None
        self._advance: Advance | None = None
        self._first = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the bar."""
        self._open = image_progress("training", self.images * self.epochs, seen=self.seen)
        self._advance = self._open.__enter__()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar."""
        if self._advance is not None:
            loss = f"loss {pl_module.batch_loss:.3f}" if isinstance(pl_module, TrainModule) else ""
            place = f"epoch {trainer.current_epoch + 1}/{self.epochs}"
            self._advance(len(batch.images) * self.processes.size, f"{place}  {loss}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the epoch's line."""
        if not self.processes.first:
            return
        keeper = next(c for c in trainer.callbacks if isinstance(c, RunKeeper))  # type: ignore[attr-defined]
        row = read_history(keeper.run)[-1]
        best = "  [green]best so far[/]" if keeper.best_epoch == row["epoch"] else ""
        console.print(
            f"epoch {int(row['epoch']):>3}/{self.epochs}   train loss {row['train_loss']:.3f}"
            f"   val {keeper.kind.label} {row.get(f'val_{keeper.kind.score}', math.nan):6.1%}"
            f"   {_speed(row['images_per_s'])} images/s{best}"
        )
        verdict = keeper.waits.verdict() if self._first and keeper.waits is not None else ""
        if verdict:
            console.print(f"  {verdict}", style="dim", soft_wrap=True)
        self._first = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the bar away."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Take the bar away."""
        self._close()

    def _close(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = self._advance = None


def history_columns(figures: Sequence[str]) -> list[str]:
    """Return the columns of metrics.csv; `figures` are those of a validation pass."""
    return ["epoch", "lr", "train_loss", *figures, "images_per_s", "seconds", "data_wait"]


def read_history(run: RunFolder) -> list[dict[str, float]]:
    """Return the rows of metrics.csv; columns without a value are left out."""
    if not run.metrics.exists():
        return []
    with run.metrics.open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def _speed(images_per_s: float) -> str:
    return f"{images_per_s:.0f}" if images_per_s >= 10 else f"{images_per_s:.1f}"


def _append_row(run: RunFolder, row: dict[str, Any], figures: Sequence[str]) -> None:
    """Add a row, dropping any of that epoch or later which a restart made void."""
    rows: list[dict[str, Any]] = [r for r in read_history(run) if r["epoch"] < row["epoch"]]
    with (
        atomic_write(run.metrics) as partial,
        partial.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, history_columns(figures), restval="")
        writer.writeheader()
        for entry in [*rows, row]:
            values = {name: value for name, value in entry.items() if value is not None}
            writer.writerow(values | {"epoch": int(entry["epoch"])})
