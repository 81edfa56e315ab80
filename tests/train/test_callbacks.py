"""Averaging against a hand-rolled loop, and what the callbacks keep, count and stop."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from fullfield.data import ImageBatch, Unreadable
from fullfield.errors import TrainingError
from fullfield.progress import console
from fullfield.tasks.run_folder import RunFolder
from fullfield.train.callbacks import UnreadableImages, averaging, history_columns, read_history
from fullfield.train.kinds import kind_of
from tests.images import read_rows


class Toy(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def toy_sequence(length: int) -> list[dict[str, torch.Tensor]]:
    """Weights and buffers after each of `length` steps."""
    torch.manual_seed(1)
    toy = Toy()
    states = []
    for _ in range(length):
        for parameter in toy.parameters():
            parameter.data.normal_()
        toy.net(torch.randn(8, 3))  # moves BatchNorm's statistics and its counter
        states.append(copy.deepcopy(toy.state_dict()))
    return states


@pytest.mark.parametrize("decay", [0.999, 0.5, 0.15])
def test_average_is_the_documented_formula_in_a_loop(decay: float) -> None:
    states = toy_sequence(30)
    toy, callback = Toy(), averaging(decay)
    trainer: Any = SimpleNamespace(global_step=0)
    callback.setup(trainer, toy, "fit")
    for step, state in enumerate(states, 1):
        toy.load_state_dict(state)
        trainer.global_step = step
        callback.on_train_batch_end(trainer, toy, None, None, 0)

    expected = {name: value.double() for name, value in states[0].items()}
    for n, state in enumerate(states[1:], 1):
        d = min(decay, (1 + n) / (10 + n))
        expected = {name: d * expected[name] + (1 - d) * state[name].double() for name in expected}
    callback.on_train_end(trainer, toy)
    for name, value in toy.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
        else:
            assert value == states[-1][name]  # counters are taken over, not averaged


def test_averaged_weights_are_validated_and_the_others_trained_on() -> None:
    states = toy_sequence(5)
    toy, callback = Toy(), averaging(0.9)
    trainer: Any = SimpleNamespace(global_step=0)
    callback.setup(trainer, toy, "fit")
    for step, state in enumerate(states, 1):
        toy.load_state_dict(state)
        trainer.global_step = step
        callback.on_train_batch_end(trainer, toy, None, None, 0)
    callback.on_validation_epoch_start(trainer, toy)
    assert not torch.equal(toy.net[0].weight, states[-1]["net.0.weight"])
    callback.on_validation_epoch_end(trainer, toy)
    assert torch.equal(toy.net[0].weight, states[-1]["net.0.weight"])


def batch(*bad: tuple[str, str]) -> ImageBatch:
    return ImageBatch(
        torch.zeros(1, 3, 8, 8), torch.zeros(1), torch.zeros(1), tuple(Unreadable(path, why) for path, why in bad)
    )


def see(callback: UnreadableImages, *bad: tuple[str, str], validation: bool = False) -> None:
    nothing: Any = None
    hook = callback.on_validation_batch_end if validation else callback.on_train_batch_end
    hook(nothing, nothing, None, batch(*bad), 0)
    if validation:
        callback.on_validation_epoch_end(nothing, nothing)


def test_unreadable_images_are_listed_once_each_in_the_order_of_their_coming(tmp_path: Path) -> None:
    callback = UnreadableImages(RunFolder(tmp_path), limit=2, total=100)
    see(callback)
    assert not (tmp_path / "unreadable.csv").exists()
    see(callback, ("b.jpg", "is empty"))
    see(callback, ("v.jpg", 'says "no", twice'), validation=True)
    see(callback, ("a\udce9.jpg", "cut\noff"), ("b.jpg", "is empty"))
    see(callback, ("v.jpg", "again"), validation=True)
    assert read_rows(tmp_path / "unreadable.csv") == [
        {"path": "b.jpg", "reason": "is empty"},
        {"path": "a\\udce9.jpg", "reason": "cut\noff"},
        {"path": "v.jpg", "reason": 'says "no", twice'},
    ]


def test_one_image_more_than_the_limit_stops_and_names_the_first(tmp_path: Path) -> None:
    callback = UnreadableImages(RunFolder(tmp_path), limit=1, total=50)
    see(callback, ("first.jpg", "is empty"))
    see(callback, ("first.jpg", "is empty"))
    see(callback, *[(f"v{i}.jpg", "is empty") for i in range(9)], validation=True)  # these do not count
    with pytest.raises(TrainingError, match=r"2 of 50 .*\(1\)\. The first: first\.jpg: is empty.*raise --max-bad"):
        see(callback, ("second.jpg", "is empty"))
    assert "second.jpg" in (tmp_path / "unreadable.csv").read_text()


def test_unreadable_images_survive_a_restart(tmp_path: Path) -> None:
    before = UnreadableImages(RunFolder(tmp_path), limit=9, total=9)
    see(before, ("a.jpg", "is empty"))
    see(before, ("v.jpg", "is empty"), validation=True)
    after = UnreadableImages(RunFolder(tmp_path), limit=9, total=9)
    after.load_state_dict(before.state_dict())
    see(after, ("b.jpg", "is empty"))
    assert after.all == [("a.jpg", "is empty"), ("b.jpg", "is empty"), ("v.jpg", "is empty")]


def test_history_of_a_finished_run_has_a_row_an_epoch(finished: Path) -> None:
    rows = read_rows(finished / "metrics.csv")
    assert list(rows[0]) == history_columns(kind_of("classify").columns)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    history = read_history(RunFolder(finished))
    for row in history:
        assert "val_top5" not in row  # three classes
        assert 0 <= row["val_top1"] <= 1
        assert row["images_per_s"] > 0
    # the last epoch ends close to the cosine's floor
    assert history[-1]["lr"] < 0.1 * history[0]["lr"]
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_history_of_a_folder_without_one_is_empty(tmp_path: Path) -> None:
    assert read_history(RunFolder(tmp_path)) == []


def test_progress_goes_to_standard_error_only(capsys: pytest.CaptureFixture[str]) -> None:
    console.print("here")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "here\n")
