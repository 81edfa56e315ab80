"""Trackers: what lands in TensorBoard's files and in a logger that remembers, through restarts and failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fullfield.data import ImageBatch
from fullfield.errors import ConfigError, MissingExtraError
from fullfield.tasks import ClassificationTask
from fullfield.tasks.run_folder import RunFolder
from fullfield.train import tracking
from fullfield.train.callbacks import history_columns
from fullfield.train.kinds import kind_of
from fullfield.train.module import TrainModule
from fullfield.train.settings import TrainSettings
from fullfield.train.tracking import LogMetrics, make_loggers, tracking_file

COLUMNS = history_columns(kind_of("classify").columns)


class Remembers(Logger):
    """A logger that keeps what it is told, and fails when told to."""

    def __init__(self, save_dir: str = "", *, fails: bool = False) -> None:
        super().__init__()
        self.where, self.fails = save_dir, fails
        self.rows: list[tuple[int | None, dict[str, float]]] = []
        self.settings: list[dict[str, Any]] = []

    name, version = "remembers", "42"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self.fails:
            raise ConnectionError("no network")
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        self.settings.append(dict(params))


class NeedsKey(Remembers):
    def __init__(self, key: str) -> None:
        super().__init__()


class Writes(pl.Callback):
    """Writes a row of metrics.csv an epoch, as `RunKeeper` does."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        lines = self.run.metrics.read_text().splitlines()[:epoch] if self.run.metrics.exists() else [",".join(COLUMNS)]
        row = {"epoch": epoch, "train_loss": 1 / epoch, "val_top1": epoch / 10}
        lines.append(",".join(str(row.get(name, "")) for name in COLUMNS))
        self.run.metrics.write_text("\n".join(lines) + "\n")


class Falls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) @ self.weight.T


def as_batch(indices: list[int]) -> ImageBatch:
    labels = torch.tensor(indices) % 2
    images = labels[:, None, None, None].float().expand(-1, 3, 4, 4)
    return ImageBatch(images, labels, torch.tensor(indices), ())


def train(run: RunFolder, loggers: list[Logger], epochs: int, *, every: int = 2, **options: Any) -> TrainModule:
    """Six steps an epoch, from the beginning."""
    module = TrainModule(ClassificationTask(Falls(), 2), TrainSettings("photos", epochs=epochs, lr=0.1), 100, [])
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[Writes(run), LogMetrics(run, every=every, settings={"lr": 0.1, "model": "falls"})],
        logger=loggers,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, DataLoader(range(24), batch_size=4, collate_fn=as_batch))  # type: ignore[arg-type]
    return module


def steps(logger: Remembers, key: str) -> list[int | None]:
    return [step for step, row in logger.rows if key in row]


def test_steps_and_epochs_are_logged_on_the_axis_of_optimiser_steps(tmp_path: Path) -> None:
    logger = Remembers()
    train(RunFolder(tmp_path), [logger], epochs=2, every=4)
    assert steps(logger, "step/loss") == [4, 8, 12]
    assert all(set(row) == {"step/loss", "step/lr"} for _, row in logger.rows if "step/loss" in row)
    assert [(step, row) for step, row in logger.rows if "epoch" in row] == [
        (6, {"epoch": 1.0, "epoch/train_loss": 1.0, "epoch/val_top1": 0.1}),
        (12, {"epoch": 2.0, "epoch/train_loss": 0.5, "epoch/val_top1": 0.2}),
    ]
    assert logger.settings == [{"lr": 0.1, "model": "falls"}]


def test_accumulated_batches_count_as_the_one_step_that_they_are(tmp_path: Path) -> None:
    logger = Remembers()
    train(RunFolder(tmp_path), [logger], epochs=2, every=1, accumulate_grad_batches=3)
    assert steps(logger, "step/loss") == [1, 2, 3, 4]


def test_what_is_done_again_after_a_restart_is_not_logged_again(tmp_path: Path) -> None:
    # the first one logs nine steps of a run and is lost; the second does all steps again, as from a state at step 0
    first, second = Remembers(), Remembers()
    run = RunFolder(tmp_path)
    train(run, [first], epochs=2, max_steps=9)
    train(run, [second], epochs=3)
    assert steps(first, "step/loss") == [2, 4, 6, 8]
    assert steps(second, "step/loss") == [10, 12, 14, 16, 18]
    assert steps(first, "epoch")[0] == 6
    assert steps(first, "epoch") + steps(second, "epoch") == sorted({*steps(first, "epoch"), *steps(second, "epoch")})
    assert [row["epoch"] for _, row in first.rows + second.rows if "epoch" in row] == [1.0, 2.0, 3.0]
    assert (len(first.settings), len(second.settings)) == (1, 0)


def test_tensorboards_files_are_below_the_run_and_hold_each_step_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunFolder(tmp_path)
    for epochs in (1, 2):  # the second is a run that was continued
        train(run, make_loggers(["auto"], run), epochs)
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.csv", "tensorboard", "tracking.json"}
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("step/loss")] == [2, 4, 6, 8, 10, 12]
    assert [(event.step, round(event.value, 6)) for event in events.Scalars("epoch/val_top1")] == [(6, 0.1), (12, 0.2)]
    losses = [event.value for event in events.Scalars("step/loss")]
    assert losses[-1] < losses[0]


def test_a_tracker_that_fails_is_dropped_and_the_run_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = Remembers(), Remembers(fails=True)
    train(RunFolder(tmp_path), [bad, good], epochs=1)
    assert steps(good, "step/loss") == [2, 4, 6]
    err = " ".join(capsys.readouterr().err.split())
    assert err.count("Remembers failed and gets no more figures: no network. metrics.csv has them all") == 1


def test_a_damaged_memory_of_what_was_logged_is_no_reason_to_stop(tmp_path: Path) -> None:
    run, logger = RunFolder(tmp_path), Remembers()
    tracking_file(run).write_text("{cut")
    train(run, [logger], epochs=1)
    assert steps(logger, "step/loss") == [2, 4, 6]


def test_other_processes_than_the_first_log_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pl.Trainer, "is_global_zero", False)
    logger = Remembers()
    train(RunFolder(tmp_path), [logger], epochs=1)
    assert logger.rows == logger.settings == []
    assert not tracking_file(RunFolder(tmp_path)).exists()


def test_names_that_stand_for_no_logger_make_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path)
    assert make_loggers(["none"], run) == make_loggers(["csv"], run) == make_loggers([], run) == []
    monkeypatch.setattr(tracking, "_has_tensorboard", lambda: False)
    assert make_loggers(["auto"], run) == []
    with pytest.raises(MissingExtraError, match=r"the logger tensorboard needs tensorboard.*pip install tensorboard"):
        make_loggers(["tensorboard"], run)


def test_each_name_makes_one_logger_and_any_class_is_given_the_runs_path(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    made = make_loggers(["tensorboard", f"{__name__}.Remembers", "tensorboard"], RunFolder(tmp_path))
    assert isinstance(made[0], TensorBoardLogger)
    assert len(made) == 2
    assert type(made[1]).__name__ == "Remembers"
    assert made[1].where == str(tmp_path)  # type: ignore[attr-defined]


def test_a_run_that_was_continued_goes_on_under_the_trackers_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking.loggers, "WandbLogger", type("WandbLogger", (Keywords,), {}))
    monkeypatch.setattr(tracking.loggers, "MLFlowLogger", type("MLFlowLogger", (Keywords,), {}))
    monkeypatch.setattr(tracking.loggers, "CometLogger", type("CometLogger", (Keywords,), {}))
    run, names = RunFolder(tmp_path / "mine"), ["wandb", "mlflow", "comet"]
    run.path.mkdir()
    keys = ("id", "run_id", "experiment_key")
    first: Any = make_loggers(names, run)
    assert [logger.given[key] for logger, key in zip(first, keys, strict=True)] == [None] * 3
    assert [logger.given.get("name") or logger.given["run_name"] for logger in first] == ["mine"] * 3
    train(run, first, epochs=1)
    again: Any = make_loggers(names, run)
    assert [logger.given[key] for logger, key in zip(again, keys, strict=True)] == ["42"] * 3


class Keywords(Remembers):
    def __init__(self, **given: Any) -> None:
        super().__init__()
        self.given = given


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["tensorbord"], r"unknown logger 'tensorbord'; did you mean 'tensorboard'.*any Lightning logger"),
        (["none", "wandb"], "none can't be combined with others, got none, wandb"),
        (["neptune"], "Neptune has been shut down"),
        ([f"{__name__}.Remember"], r"test_tracking has no logger 'Remember'; did you mean 'Remembers'"),
        ([f"{__name__}.TrainSettings"], "TrainSettings is no Logger of pytorch_lightning"),
        ([f"{__name__}.NeedsKey"], r"NeedsKey can't be started \(.*'key'\)"),
    ],
)
def test_bad_names_are_named(names: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        make_loggers(names, RunFolder(tmp_path))


def test_a_missing_package_comes_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(**_: Any) -> None:
        raise ModuleNotFoundError("Requirement 'comet-ml>=3.44.4' not met")

    monkeypatch.setattr(tracking.loggers, "CometLogger", missing)
    with pytest.raises(MissingExtraError, match=r"the logger comet needs comet-ml.*pip install comet-ml"):
        make_loggers(["comet"], RunFolder(tmp_path))
    with pytest.raises(MissingExtraError, match=r"nosuchpackage.loggers.Mine needs nosuchpackage"):
        make_loggers(["nosuchpackage.loggers.Mine"], RunFolder(tmp_path))


def test_bad_intervals_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1 step, got 0"):
        LogMetrics(RunFolder(tmp_path), every=0)
