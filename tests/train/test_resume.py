"""A run that was killed or stopped, then resumed, ends bit for bit as one that was not."""

from __future__ import annotations

import os
import signal
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
from fullfield.errors import ConfigError, RunError
from fullfield.tasks.run_folder import RunFolder
from fullfield.train.callbacks import read_history
from fullfield.train.checkpoint import newest_state
from fullfield.train.module import TrainModule, warmup_cosine
from fullfield.train.stopping import StateKeeper
from tests.images import TINY, TINY_ARGV, best_weights, figures, read_rows, same_weights, write_photos

# Stand still in the second step of the third epoch until killed or sent on; the marker tells that it is reached.
HANG = """
import signal, sys, time
from pathlib import Path
from fullfield.cli.main import main
from fullfield.train.module import TrainModule, warmup_cosine
from fullfield.train.stopping import StateKeeper

signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have switched it off
step = TrainModule.training_step

def hang(self, batch, batch_idx):
    if self.current_epoch == 2 and batch_idx == 1:
        Path(sys.argv[1]).touch()
        for _ in range(600):
            if Path(sys.argv[1] + ".go").exists():
                break
            time.sleep(0.2)
    return step(self, batch, batch_idx)

TrainModule.training_step = hang
sys.exit(main(sys.argv[2:]))
"""


def assert_same_run(run: Path, other: Path) -> None:
    """Assert equal figures, equal best weights, and an equal last state of model, average and optimiser."""
    assert figures(run) == figures(other)
    assert same_weights(best_weights(run), best_weights(other))
    last, other_last = (torch.load(RunFolder(path).states[0], weights_only=True) for path in (run, other))
    for part in ("state_dict", "current_model_state"):
        assert same_weights(last.get(part, {}), other_last.get(part, {})), part
    torch.testing.assert_close(last["optimizer_states"], other_last["optimizer_states"], rtol=0, atol=0)


class HangingRun:
    """A run in another process that stands still in its third epoch."""

    def __init__(self, photos: Path, run: Path, *options: str) -> None:
        self.marker = marker = run.parent / "reached"
        environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        self.process = subprocess.Popen(
            [sys.executable, "-c", HANG, str(marker), "train", str(photos), "--out", str(run), *TINY_ARGV, *options],
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

    def stop(self, *signals: int) -> tuple[int, str, str]:
        """Send signals, then let it go on; return the exit code, standard output and standard error."""
        for number in signals:
            self.process.send_signal(number)
            time.sleep(0.3)
        self.marker.with_name("reached.go").touch()
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


def test_run_killed_in_its_third_epoch_ends_as_if_nothing_had_happened(
    finished: Path, photos: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    code, _, _ = HangingRun(photos, run).stop(signal.SIGKILL)
    assert code == -9
    assert [row["epoch"] for row in read_rows(run / "metrics.csv")] == ["1", "2"]
    assert newest_state(RunFolder(run))[0].position.words == "epoch 2"
    result = fullfield.train(resume=run)
    assert_same_run(run, finished)
    assert result.report.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_command_saves_its_step_says_how_to_go_on_and_exits_with_the_signal_s_code(
    finished: Path, photos: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    code, out, err = HangingRun(photos, run).stop(number)
    assert code == 128 + number
    assert newest_state(RunFolder(run))[0].position.words == "step 2 of epoch 3"
    assert f"fullfield train --resume {run}" in err
    assert "Traceback" not in err
    assert out == ""
    fullfield.train(resume=run)
    assert_same_run(run, finished)


def test_second_interrupt_ends_at_once_and_harms_nothing(finished: Path, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    start = time.monotonic()
    hanging = HangingRun(photos, run)
    code, _, err = hanging.stop(signal.SIGINT, signal.SIGINT)
    assert code == 130
    assert "once more: at once" in err
    assert newest_state(RunFolder(run))[0].position.words == "epoch 2"  # it did not end the step
    assert time.monotonic() - start < 60
    fullfield.train(resume=run)
    assert_same_run(run, finished)


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Press Ctrl-C in the second step of the second epoch; `.undo()` takes the finger off."""
    step = TrainModule.training_step

    def press(self: TrainModule, batch: Any, batch_idx: int) -> Any:
        if self.current_epoch == 1 and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGINT)
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


EXACT = [
    {"workers": 1},
    {"workers": 4},
    {"accumulate": 2, "clip_grad": 0.1},
    {"workers": 1, "accumulate": 4, "mixup": 0.4, "cutmix": 1.0, "repeats": 2},
    {"ema": 0.0, "channels_last": False, "layer_decay": 0.5},
    {"model": "resnet10t", "model_args": (), "drop_path": 0.1},
    {"model": "slak_tiny", "model_args": ("dims=[8,16,24,32]", "depths=[1,1,1,1]"), "sparsity": 0.5},
]


@pytest.mark.parametrize("changes", EXACT, ids=lambda changes: " ".join(f"{k}={v}" for k, v in changes.items()))
def test_run_stopped_within_an_epoch_ends_as_if_nothing_had_happened(
    photos: Path, tmp_path: Path, interrupt: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    options = TINY | changes
    with pytest.raises(KeyboardInterrupt):
        fullfield.train(photos, out=tmp_path / "run", **options)
    position = newest_state(RunFolder(tmp_path / "run"))[0].position
    assert position.epoch == 1
    assert position.batches == max(2, options.get("accumulate", 1))  # never amid accumulated gradients
    interrupt.undo()
    whole = fullfield.train(photos, out=tmp_path / "whole", **options).run
    fullfield.train(resume=tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


def test_every_step_s_state_continues_to_the_same_end(finished: Path, photos: Path, tmp_path: Path) -> None:
    """Also with other numbers of readers, and after the first steps, when there are no best weights yet."""
    whole = fullfield.train(photos, out=tmp_path / "whole", checkpoint_every="1", **TINY)
    assert_same_run(whole.run, finished)
    keep = StateKeeper._save

    for stop in range(1, 9):
        run = tmp_path / f"stopped-{stop}"

        def fail(self: StateKeeper, trainer: Any, epoch: int, batches: int, stop: int = stop) -> None:
            keep(self, trainer, epoch, batches)
            if trainer.global_step == stop:
                raise RuntimeError("power cut")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StateKeeper, "_save", fail)
            with pytest.raises(RuntimeError, match="power cut"):
                fullfield.train(photos, out=run, checkpoint_every="1", **TINY)
        position = newest_state(RunFolder(run))[0].position
        assert (position.epoch, position.batches, position.steps) == (stop // 3, stop % 3, stop)
        fullfield.train(resume=run, workers=stop % 2)
        assert_same_run(run, finished)


def test_damaged_newest_state_costs_the_steps_since_the_one_before(
    finished: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], interrupt: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        fullfield.train(photos, out=run.path, **TINY)
    interrupt.undo()
    newest = run.states[0]
    newest.write_bytes(newest.read_bytes()[:-100])
    capsys.readouterr()
    fullfield.train(resume=run.path)
    said = capsys.readouterr().err
    assert f"{newest} can't be read" in said
    assert "after epoch 1 of 3" in said
    assert newest.with_name(f"{newest.name}.damaged").exists()
    assert_same_run(run.path, finished)


def test_what_changes_the_result_is_refused_unless_named(
    photos: Path, tmp_path: Path, interrupt: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    data = write_photos(tmp_path / "photos")
    with pytest.raises(KeyboardInterrupt):
        fullfield.train(data, out=run.path, **TINY)
    interrupt.undo()
    with pytest.raises(
        ConfigError, match=r"change lr from 0.005 to 0.001, mixup from 0.0 to 0.8.*--allow-change lr mixup"
    ):
        fullfield.train(resume=run.path, lr=1e-3, mixup=0.8)
    with pytest.raises(ConfigError, match="did you mean 'lr'"):
        fullfield.train(resume=run.path, lr=1e-3, allow_change=("lrr",))
    (data / "red" / "00.jpg").rename(data / "red" / "another.jpg")
    with pytest.raises(ConfigError, match=r"the lists of images.*is not what it was.*--allow-change images"):
        fullfield.train(resume=run.path)
    fullfield.train(resume=run.path, lr=1e-5, allow_change=("lr", "images"))
    assert read_history(run)[-1]["lr"] == pytest.approx(1e-5 * warmup_cosine(9, total=9, warmup=3))


def test_data_may_be_moved_between_the_parts_of_a_run(
    photos: Path, finished: Path, tmp_path: Path, interrupt: pytest.MonkeyPatch
) -> None:
    data = write_photos(tmp_path / "here" / "photos")
    with pytest.raises(KeyboardInterrupt):
        fullfield.train(data, out=tmp_path / "run", **TINY)
    interrupt.undo()
    data.parent.rename(tmp_path / "there")
    fullfield.train(resume=tmp_path / "run", data=tmp_path / "there" / "photos")
    assert_same_run(tmp_path / "run", finished)


def test_run_stopped_by_patience_stays_stopped(photos: Path, tmp_path: Path) -> None:
    run = fullfield.train(photos, out=tmp_path / "run", patience=1, **TINY | {"lr": 1e-12, "epochs": 5}).run
    assert len(figures(run)) == 2
    before = RunFolder(run).states[0].read_bytes()
    fullfield.train(resume=run)
    assert len(figures(run)) == 2
    assert RunFolder(run).states[0].read_bytes() == before


def test_resuming_a_finished_run_trains_no_further_and_writes_the_report_again(photos: Path, tmp_path: Path) -> None:
    first = fullfield.train(photos, out=tmp_path / "run", **TINY | {"epochs": 1})
    before = RunFolder(first.run).states[0].read_bytes()
    first.report.unlink()
    again = fullfield.train(resume=first.run)
    assert again.report.exists()
    assert again.evaluation.to_dict() == first.evaluation.to_dict()
    assert RunFolder(first.run).states[0].read_bytes() == before


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


@pytest.mark.parametrize("name", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_command_that_is_repeated_after_a_loss_goes_on(
    finished: Path, photos: Path, tmp_path: Path, interrupt: pytest.MonkeyPatch, name: str
) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fullfield.train(photos, out=run, **TINY)
    interrupt.undo()
    with pytest.raises(RunError, match="--resume"):
        fullfield.train(photos, out=run, **TINY)
    interrupt.setenv(name, "1")
    fullfield.train(photos, out=run, **TINY)
    assert_same_run(run, finished)


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
