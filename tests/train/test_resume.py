"""A run that was killed or stopped, then resumed, ends bit for bit as one that was not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import fullfield
from fullfield.data import Unreadable
from fullfield.errors import RunError
from fullfield.tasks.run_folder import RunFolder
from fullfield.train.callbacks import read_history
from fullfield.train.checkpoint import checkpoint_epoch
from fullfield.train.module import TrainModule
from tests.images import TINY, TINY_ARGV, best_weights, figures, read_rows, same_weights, write_photos

# Stand still in the second step of the third epoch until killed; the marker tells that it is reached.
HANG = """
import signal, sys, time
from pathlib import Path
from fullfield.cli.main import main
from fullfield.train.module import TrainModule

signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have switched it off
step = TrainModule.training_step

def hang(self, batch, batch_idx):
    if self.current_epoch == 2 and batch_idx == 1:
        Path(sys.argv[1]).touch()
        time.sleep(120)
    return step(self, batch, batch_idx)

TrainModule.training_step = hang
sys.exit(main(sys.argv[2:]))
"""


def assert_same_run(run: Path, other: Path) -> None:
    """Assert equal figures, equal best weights, and an equal last state of model, average and optimiser."""
    assert figures(run) == figures(other)
    assert same_weights(best_weights(run), best_weights(other))
    last, other_last = (torch.load(path / "checkpoints" / "last.ckpt", weights_only=True) for path in (run, other))
    for part in ("state_dict", "current_model_state"):
        assert same_weights(last[part], other_last[part]), part
    torch.testing.assert_close(last["optimizer_states"], other_last["optimizer_states"], rtol=0, atol=0)


class HangingRun:
    """A run in another process that stands still in its third epoch."""

    def __init__(self, photos: Path, run: Path) -> None:
        marker = run.parent / "reached"
        environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        self.process = subprocess.Popen(
            [sys.executable, "-c", HANG, str(marker), "train", str(photos), "--out", str(run), *TINY_ARGV],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        patience = time.monotonic() + 100
        while not marker.exists():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < patience, "the run did not reach its third epoch"
            time.sleep(0.02)

    def stop(self, how: str) -> tuple[int, str, str]:
        """Send a signal; return the exit code, standard output and standard error."""
        getattr(self.process, how)()
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


def test_run_killed_in_its_third_epoch_ends_as_if_nothing_had_happened(
    finished: Path, photos: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    code, _, _ = HangingRun(photos, run).stop("kill")
    assert code == -9
    assert [row["epoch"] for row in read_rows(run / "metrics.csv")] == ["1", "2"]
    assert checkpoint_epoch(run / "checkpoints" / "last.ckpt") == 2
    result = fullfield.train(resume=run)
    assert_same_run(run, finished)
    assert result.report.exists()


def test_interrupted_command_says_how_to_go_on_and_exits_with_130(finished: Path, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    hanging = HangingRun(photos, run)
    hanging.process.send_signal(2)
    out, err = hanging.process.communicate(timeout=60)
    assert hanging.process.returncode == 130
    assert f"fullfield train --resume {run}" in err
    assert "Traceback" not in err
    assert out == ""
    fullfield.train(resume=run)
    assert_same_run(run, finished)


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Press Ctrl-C in the second step of the second epoch; `.undo()` takes the finger off."""
    step = TrainModule.training_step

    def press(self: TrainModule, batch: Any, batch_idx: int) -> Any:
        if self.current_epoch == 1 and batch_idx == 1:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(TrainModule, "training_step", press)
    return monkeypatch


def test_interrupt_in_python_is_a_keyboard_interrupt_and_the_run_goes_on(
    finished: Path, photos: Path, tmp_path: Path, interrupt: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fullfield.train(photos, out=run, **TINY)
    assert len(read_rows(run / "metrics.csv")) == 1
    assert not (run / "report.html").exists()
    interrupt.undo()
    fullfield.train(resume=run)
    assert_same_run(run, finished)


def test_randomness_patience_and_start_are_the_same_after_a_restart(
    finished: Path, photos: Path, tmp_path: Path, interrupt: pytest.MonkeyPatch
) -> None:
    options = TINY | {"mixup": 0.4, "cutmix": 1.0, "drop_path": 0.2, "rand_augment": 5, "erasing": 0.3, "patience": 2}
    start = tmp_path / "start.safetensors"
    start.write_bytes((finished / "checkpoints" / "best.safetensors").read_bytes())
    with pytest.raises(KeyboardInterrupt):
        fullfield.train(photos, out=tmp_path / "run", weights=start, **options)
    interrupt.undo()
    whole = fullfield.train(photos, out=tmp_path / "whole", weights=start, **options).run
    start.unlink()  # a resumed run has weights of its own
    fullfield.train(resume=tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


def test_run_stopped_by_patience_stays_stopped(photos: Path, tmp_path: Path) -> None:
    run = fullfield.train(photos, out=tmp_path / "run", patience=1, **TINY | {"lr": 1e-12, "epochs": 5}).run
    assert len(figures(run)) == 2
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    fullfield.train(resume=run)
    assert len(figures(run)) == 2
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before


def test_resuming_a_finished_run_trains_no_further_and_writes_the_report_again(photos: Path, tmp_path: Path) -> None:
    first = fullfield.train(photos, out=tmp_path / "run", **TINY | {"epochs": 1})
    before = (first.run / "checkpoints" / "last.ckpt").read_bytes()
    first.report.unlink()
    again = fullfield.train(resume=first.run)
    assert again.report.exists()
    assert again.evaluation.to_dict() == first.evaluation.to_dict()
    assert (first.run / "checkpoints" / "last.ckpt").read_bytes() == before


def test_unreadable_images_seen_before_a_restart_stay_listed(
    photos: Path, tmp_path: Path, interrupt: pytest.MonkeyPatch
) -> None:
    data = write_photos(tmp_path / "photos")
    bad = data / "red" / "02.jpg"
    bad.write_bytes(b"")
    with pytest.raises(KeyboardInterrupt):
        fullfield.train(data, out=tmp_path / "run", max_bad="10%", **TINY)
    interrupt.undo()
    listed = read_rows(tmp_path / "run" / "unreadable.csv")
    assert [row["path"] for row in listed] == [str(bad)]
    write_photos(data)  # mended
    result = fullfield.train(resume=tmp_path / "run")
    assert read_rows(tmp_path / "run" / "unreadable.csv") == listed
    assert str(bad) in result.report.read_text()
    assert Unreadable(**listed[0]) not in result.evaluation.unreadable


def test_row_without_a_state_is_written_anew(photos: Path, tmp_path: Path, interrupt: pytest.MonkeyPatch) -> None:
    """A kill between the row and the state leaves a row too many; resuming must not double it."""
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fullfield.train(photos, out=run, **TINY)
    interrupt.undo()
    with (run / "metrics.csv").open("a") as file:
        file.write("2,9,9,9,9,,9,9,9\n")
    fullfield.train(resume=run)
    assert [row["epoch"] for row in read_history(RunFolder(run))] == [1, 2, 3]
    assert "9,9,9" not in (run / "metrics.csv").read_text()


def test_what_is_no_run_can_not_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        fullfield.train(resume=tmp_path / "nothing")


def test_run_may_be_started_outside_the_main_thread(photos: Path, tmp_path: Path) -> None:
    results: list[Any] = []
    thread = threading.Thread(
        target=lambda: results.append(fullfield.train(photos, out=tmp_path / "run", **TINY | {"epochs": 1}))
    )
    thread.start()
    thread.join()
    assert len(results) == 1
