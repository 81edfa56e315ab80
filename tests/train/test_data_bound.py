"""Waiting for data: the callback against loaders and steps of known duration, and the wording of its verdict."""

from __future__ import annotations

import time
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fullfield.data import ImageBatch
from fullfield.train.data_bound import DataBound, verdict


class SlowImages(Dataset[int]):
    def __init__(self, count: int, seconds: float) -> None:
        self.count, self.seconds = count, seconds

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        time.sleep(self.seconds)
        return index


class SlowStep(pl.LightningModule):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.net = nn.Linear(1, 1)

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        time.sleep(self.seconds)
        return self.net(batch.images.flatten(1)).mean()

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def as_batch(indices: list[int]) -> ImageBatch:
    labels = torch.tensor(indices)
    return ImageBatch(torch.zeros(len(indices), 1, 1, 1), labels, labels, ())


class Rows(pl.Callback):
    def __init__(self, measured: DataBound) -> None:
        self.measured = measured
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.rows.append(self.measured.row())


def measure(load_s: float, step_s: float, batches: int = 6, epochs: int = 1, **options: Any) -> tuple[DataBound, Rows]:
    found = DataBound(workers=0)
    rows = Rows(found)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[rows, found],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    loader = DataLoader(SlowImages(2 * batches, load_s / 2), batch_size=2, collate_fn=as_batch)
    trainer.fit(SlowStep(step_s), loader, DataLoader(SlowImages(2, 0.0), batch_size=2, collate_fn=as_batch))
    return found, rows


def test_a_slow_loader_is_found_and_its_share_is_what_it_took() -> None:
    found, _ = measure(load_s=0.08, step_s=0.01)
    # sleeping takes at least its time; all else of a step adds to both sides
    assert found.wait_s >= 5 * 0.08
    assert found.step_s >= 5 * 0.01
    assert found.images == 10  # the first of six batches is left out
    assert 0.5 < found.row()["data_wait"] < 8 / 9
    assert found.verdict().startswith("data-bound: ")


def test_a_slow_step_is_found() -> None:
    found, rows = measure(load_s=0.0, step_s=0.06, epochs=2)
    assert found.row()["data_wait"] < 0.1
    assert found.verdict().startswith("compute-bound: data ")
    assert [set(row) for row in rows.rows] == [{"data_wait"}] * 2
    assert found.images == 10  # of the second epoch alone


def test_saving_at_the_end_of_a_step_and_validation_within_an_epoch_do_not_count_as_waiting() -> None:
    class Saves(pl.Callback):
        def on_train_batch_end(self, *_: Any, **__: Any) -> None:
            time.sleep(0.05)

        def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
            time.sleep(0.3)

    found = DataBound(workers=0)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[Saves(), found],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=2,
    )
    loader, val = (DataLoader(SlowImages(n, 0.0), batch_size=2, collate_fn=as_batch) for n in (8, 2))
    trainer.fit(SlowStep(0.0), loader, val)
    assert found.wait_s < 0.1


def test_an_epoch_of_one_batch_tells_nothing() -> None:
    found, rows = measure(load_s=0.0, step_s=0.0, batches=1)
    assert (rows.rows, found.verdict()) == ([{}], "")


@pytest.mark.parametrize(("workers", "loader"), [(0, "loader could give 3,233 images/s"), (4, "the loader keeps up")])
def test_the_verdict_on_a_slow_step_says_what_is_known_of_the_loader(workers: int, loader: str) -> None:
    line = verdict(3.0, 97.0, 9700, workers)
    assert line == f"compute-bound: data 3% of the step ({loader}, the step takes 100)"


@pytest.mark.parametrize(("workers", "rate"), [(0, 100), (8, 61)])
def test_the_verdict_on_a_slow_loader_says_both_rates_and_the_way_out(workers: int, rate: int) -> None:
    assert verdict(61.0, 39.0, 6100, workers) == (
        f"data-bound: 61% of the time waits for images (the loader gives {rate} images/s, the step could take 156):"
        " more --workers, or `fullfield pack`"
    )


def test_nothing_measured_has_no_verdict() -> None:
    assert verdict(0.0, 0.0, 0, 0) == ""
