"""Figures of a run for experiment trackers: TensorBoard, Weights & Biases, MLflow, Comet, or any logger of Lightning's.

metrics.csv and the report are always written; these come beside them, below the run folder where the tracker stores
files at all. A run that was continued does the steps after its last state again: `tracking.json` remembers what was
logged, so that no step and no epoch comes twice, and the tracker's own name of the run, so that it goes on there.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import loggers
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from rich.markup import escape

from fullfield.data import ImageBatch
from fullfield.errors import ConfigError, MissingExtraError, nearest
from fullfield.files import write_json
from fullfield.progress import console
from fullfield.tasks.run_folder import RunFolder
from fullfield.train.callbacks import read_history
from fullfield.train.module import TrainModule

__all__ = ["TRACKERS", "LogMetrics", "check_loggers", "make_loggers", "tracking_file"]

PROJECT = "fullfield"


def tracking_file(run: RunFolder) -> Path:
    """Return the file that remembers what was logged, in the run folder."""
    return run.path / "tracking.json"


def make_loggers(names: Sequence[str], run: RunFolder) -> list[Logger]:
    """Make the loggers of a run, to give to Lightning's trainer.

    Args:
        names: "auto" (TensorBoard where it is installed), "tensorboard", "wandb", "mlflow", "comet", "csv" (only
            metrics.csv, which every run has) or "none"; or "package.module.Class", a Lightning `Logger` that is made
            with the run's path as `save_dir`, if it takes one.
        run: Where files go.

    Returns:
        One for each name that stands for one.

    Raises:
        ConfigError: A name or class is unknown (the nearest is named), is no logger, or can't be made.
        MissingExtraError: Its package is not installed; the message has the command.
    """
    check_loggers(names)
    made = []
    for name in dict.fromkeys(names):
        if name not in ("none", "csv") and (name != "auto" or _has_tensorboard()):
            made.append(_made(name, partial(TRACKERS.get(name) or partial(_class_logger, name), run)))
    return made


def check_loggers(names: Sequence[str]) -> None:
    """Look at the names of loggers, before anything is made.

    Args:
        names: As for `make_loggers`.

    Raises:
        ConfigError: A name is unknown (the nearest is named), or "none" stands beside others. A class is not looked up.
    """
    if "none" in names and len(set(names)) > 1:
        raise ConfigError(f"the logger none can't be combined with others, got {', '.join(names)}")
    if "neptune" in names:
        raise ConfigError("Neptune has been shut down, and Lightning has no logger for it any more; use another")
    known = sorted({*TRACKERS, "none", "csv"})
    for name in names:
        if name not in known and "." not in name:
            raise ConfigError(
                f"unknown logger {name!r}{nearest(name, known)}. Known are {', '.join(known)}, and any Lightning logger"
                " as package.module.Class"
            )


class LogMetrics(Callback):
    """Give the trainer's loggers the rows of metrics.csv, and every so many steps the loss and the learning rate.

    The x axis is the optimiser step. Epochs are `epoch/val_top1` and so on, with the columns of metrics.csv; steps are
    `step/loss`, of the first process's last batch, and `step/lr`. Put it after `RunKeeper`, which writes the rows. A
    tracker that fails is dropped with a line on the screen: the run goes on, and metrics.csv has everything.

    Args:
        run: Where.
        every: Optimiser steps from one to the next.
        settings: Plain values that trackers show beside the run.

    Raises:
        ConfigError: `every` is not positive.
    """

    def __init__(self, run: RunFolder, *, every: int = 50, settings: Mapping[str, Any] | None = None) -> None:
        if every < 1:
            raise ConfigError(f"every must be at least 1 step, got {every}")
        self.run = run
        self.every = every
        self.settings = dict(settings or {})
        self._loggers: list[Logger] = []
        self._names: dict[str, str] = {}  # under which trackers know the run
        self._step, self._epoch = 0, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read what was logged before a restart; tell the trackers the settings of a new run."""
        self._loggers = list(trainer.loggers) if trainer.is_global_zero else []
        before = _read(self.run)
        self._step, self._epoch = int(before.get("step", 0)), int(before.get("epoch", 0))
        self._names = dict(before.get("runs", {}))
        if not before:
            self._tell(lambda logger: logger.log_hyperparams(self.settings))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: ImageBatch, batch_idx: int
    ) -> None:
        """Log the loss and the learning rate, once for each step that is due."""
        step = trainer.global_step
        if step % self.every or step <= self._step or not isinstance(pl_module, TrainModule):
            return
        self._step = step
        lr = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        self._log({"step/loss": pl_module.batch_loss, "step/lr": lr}, step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch's row."""
        epoch = trainer.current_epoch + 1
        if epoch <= self._epoch or not trainer.is_global_zero:
            return
        rows = [row for row in read_history(self.run) if row["epoch"] == epoch]
        if rows:
            self._epoch = epoch
            figures = {f"epoch/{name}": value for name, value in rows[0].items() if name != "epoch"}
            self._log({"epoch": float(epoch), **figures}, trainer.global_step)

    def _log(self, figures: dict[str, float], step: int) -> None:
        if not self._loggers:
            return

        def log(logger: Logger) -> None:
            logger.log_metrics(figures, step)
            logger.save()  # to the disk, as what was logged is remembered there

        self._tell(log)
        self._names |= {_class_path(type(logger)): str(logger.version) for logger in self._loggers}
        write_json(tracking_file(self.run), {"step": self._step, "epoch": self._epoch, "runs": self._names})

    def _tell(self, call: Callable[[Logger], None]) -> None:
        for logger in list(self._loggers):
            try:
                call(logger)
            except Exception as error:  # of any tracker's client or network; no reason to lose a run
                self._loggers.remove(logger)
                console.print(
                    f"[yellow]{type(logger).__name__} failed and gets no more figures[/]:"
                    f" {escape(str(error).strip() or type(error).__name__)}. metrics.csv has them all",
                    soft_wrap=True,
                )


def _has_tensorboard() -> bool:
    return importlib.util.find_spec("tensorboard") is not None


def _tensorboard(run: RunFolder) -> Logger:
    if not _has_tensorboard():
        raise ModuleNotFoundError("tensorboard")
    return loggers.TensorBoardLogger(run.path, name="tensorboard", version="", default_hp_metric=False)


def _wandb(run: RunFolder) -> Logger:
    return loggers.WandbLogger(
        name=run.path.name,
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        save_dir=run.path,
        id=_earlier(run, loggers.WandbLogger),
    )


def _mlflow(run: RunFolder) -> Logger:
    return loggers.MLFlowLogger(
        experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT),
        run_name=run.path.name,
        save_dir=str(run.path / "mlruns"),  # without MLFLOW_TRACKING_URI
        run_id=_earlier(run, loggers.MLFlowLogger),
    )


def _comet(run: RunFolder) -> Logger:
    return loggers.CometLogger(
        project=os.environ.get("COMET_PROJECT_NAME", PROJECT),
        experiment_key=_earlier(run, loggers.CometLogger),
        name=run.path.name,
        offline_directory=str(run.path / "comet"),
    )


TRACKERS: dict[str, Callable[[RunFolder], Logger]] = {
    "auto": _tensorboard,
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "comet": _comet,
}
"""What makes the logger of each name."""
_PACKAGES = {"auto": "tensorboard", "tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
_PACKAGES["comet"] = "comet-ml"


def _made(name: str, make: Callable[[], Logger]) -> Logger:
    """Return a logger, or say what is missing or wrong.

    Raises:
        MissingExtraError: A package is not installed.
        ConfigError: Its class can't be made.
    """
    try:
        return make()
    except ModuleNotFoundError as error:
        package = _PACKAGES.get(name) or (error.name or name).partition(".")[0]
        raise MissingExtraError(
            f"the logger {name} needs {package}, which is not installed: pip install {package}"
        ) from error
    except ConfigError:
        raise
    except Exception as error:  # a tracker's client may raise anything: no key, no server, an argument that is missing
        reason = str(error).strip() or type(error).__name__
        raise ConfigError(f"the logger {name} can't be started ({reason}); set it up, or leave it out") from error


def _class_logger(path: str, run: RunFolder) -> Logger:
    """Make a logger of any class.

    Raises:
        ConfigError: There is no such class, or it is no logger of Lightning's.
        ModuleNotFoundError: The package is not installed.
    """
    module_name, _, name = path.rpartition(".")
    module = importlib.import_module(module_name)
    found = getattr(module, name, None)
    if found is None:
        raise ConfigError(f"{module_name} has no logger {name!r}{nearest(name, dir(module))}")
    if not (isinstance(found, type) and issubclass(found, Logger)):
        raise ConfigError(f"{path} is no Logger of pytorch_lightning; give the name of a class that is one")
    takes = inspect.signature(found).parameters
    logger: Logger = found(**({"save_dir": str(run.path)} if "save_dir" in takes else {}))
    return logger


def _earlier(run: RunFolder, kind: type[Logger]) -> str | None:
    """Return the name under which a tracker knows this run, if it was continued."""
    name: str | None = _read(run).get("runs", {}).get(_class_path(kind))
    return name


def _read(run: RunFolder) -> dict[str, Any]:
    with suppress(OSError, ValueError):  # missing, or damaged: what is logged twice is no reason to stop
        found: dict[str, Any] = json.loads(tracking_file(run).read_text(encoding="utf-8"))
        return found
    return {}


def _class_path(kind: type[Logger]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
