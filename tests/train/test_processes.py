"""Several processes that train together give the run of one, survive what kills them, and say what went wrong."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import fullfield
from fullfield.errors import ConfigError, TrainingError
from fullfield.tasks.run_folder import RunFolder
from fullfield.train.checkpoint import newest_state
from fullfield.train.processes import ALONE, Processes
from tests.images import TINY, TINY_ARGV, read_rows, write_photos
from tests.train.test_resume import assert_same_run

CHECKED = TINY | {"precision": "64", "lr": 1e-4, "epochs": 3}
"""In float64, and at a rate at which rounding errors do not grow: at 1e-3 they do so in a single process too."""


def losses(run: Path) -> list[float]:
    return [float(row["train_loss"]) for row in read_rows(run / "metrics.csv")]


@pytest.fixture(scope="module")
def alone(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fullfield.train(photos, out=tmp_path_factory.mktemp("runs") / "alone", **CHECKED).run


@pytest.mark.parametrize(
    "options",
    [
        {"devices": 2},
        pytest.param({"devices": 2, "accumulate": 2, "workers": 1}, marks=pytest.mark.slow),
    ],
)
def test_two_processes_give_the_loss_curve_of_one(
    photos: Path, alone: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    if "accumulate" in options:  # BatchNorm sees the parts of a batch one by one
        alone = fullfield.train(photos, out=tmp_path / "alone", **CHECKED, accumulate=options["accumulate"]).run
    together = fullfield.train(photos, out=tmp_path / "together", **CHECKED | options)
    assert losses(together.run) == pytest.approx(losses(alone), rel=1e-9, abs=1e-9)
    assert together.report.exists()
    ours, theirs = (
        torch.load(RunFolder(run).states[0], weights_only=True)["state_dict"] for run in (together.run, alone)
    )
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.slow
def test_without_sync_bn_two_processes_differ_from_one(photos: Path, alone: Path, tmp_path: Path) -> None:
    together = fullfield.train(photos, out=tmp_path / "together", **CHECKED, devices=2, sync_bn=False)
    assert losses(together.run) != pytest.approx(losses(alone), rel=1e-6)


@pytest.mark.slow
def test_unreadable_images_weigh_nothing_and_are_named_once(tmp_path: Path) -> None:
    data = write_photos(tmp_path / "photos", each=13)
    bad = [data / "red" / "03.jpg", data / "red" / "04.jpg", data / "blue" / "05.jpg"]
    for path in bad:
        path.write_bytes(b"")
    options = CHECKED | {"max_bad": "20%", "batch_size": 4}
    runs = [fullfield.train(data, out=tmp_path / str(devices), devices=devices, **options).run for devices in (1, 2)]
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=1e-9)
    listed = [sorted(row["path"] for row in read_rows(run / "unreadable.csv")) for run in runs]
    assert listed[0] == listed[1]
    assert len(listed[0]) == len(set(listed[0]))


@pytest.mark.slow
def test_validation_is_exact_where_the_images_do_not_divide(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos" / "train")
    write_photos(tmp_path / "photos" / "val", each=3, seed=1)  # nine, in batches of 2 x 4
    runs = [
        fullfield.train(tmp_path / "photos", out=tmp_path / str(n), devices=n, **CHECKED | {"epochs": 1}).run
        for n in (1, 2)
    ]
    one, two = (read_rows(run / "metrics.csv")[0] for run in runs)
    assert two["val_top1"] == one["val_top1"]
    assert float(two["val_loss"]) == pytest.approx(float(one["val_loss"]), rel=1e-6)


def test_batch_that_can_not_be_divided_is_refused_with_the_nearest(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch of 8 images .* 1 processes x 3 .*--batch-size 9"):
        fullfield.train(photos, out=tmp_path / "run", **TINY, accumulate=3)
    with pytest.raises(ConfigError, match=r"batch of 8 images .* 3 processes x 1 .*--batch-size 9"):
        fullfield.train(photos, out=tmp_path / "run", **TINY, devices=3)
    assert not (tmp_path / "run").exists()


def test_more_processes_than_images_are_refused(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos" / "train")
    write_photos(tmp_path / "photos" / "val", each=1)
    with pytest.raises(ConfigError, match="8 processes can't share 3 images; use --devices 3"):
        fullfield.train(tmp_path / "photos", out=tmp_path / "run", devices=8, **TINY)


@pytest.mark.slow
def test_two_processes_train_in_bfloat16(photos: Path, tmp_path: Path) -> None:
    run = fullfield.train(photos, out=tmp_path / "run", devices=2, precision="bf16", **TINY).run
    assert losses(run)[-1] < losses(run)[0]


def test_error_of_a_process_is_said_and_ends_all(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = write_photos(tmp_path / "photos")
    for path in (data / "red").iterdir():
        path.write_bytes(b"")
    with pytest.raises(TrainingError, match="one of the 2 processes failed"):
        fullfield.train(data, out=tmp_path / "run", devices=2, **TINY)
    said = capfd.readouterr().err
    assert "training images can't be read, more than --max-bad allows" in said
    assert "Traceback" not in said


# --- stopping and killing ---


class Run:
    """`fullfield train` with two processes, in a process group of its own."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fullfield.cli.main", "train", *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for(self, pattern: str, folder: Path, patience_s: float = 120) -> None:
        end = time.monotonic() + patience_s
        while not list(folder.glob(pattern)):
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < end, f"{pattern} did not appear"
            time.sleep(0.02)

    def family(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> list[psutil.Process]:
        """Kill -9 the command and all that it has started, as a power cut would; return who was there."""
        family = self.family()
        for process in [*family, psutil.Process(self.process.pid)]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.communicate()
        return family


def gone(processes: list[psutil.Process], patience_s: float = 30) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=patience_s)
    return not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


PAIR = [*TINY_ARGV, "--workers", "2", "--devices", "2", "--epochs", "12", "--mixup", "0.3"]


@pytest.fixture(scope="module")
def uninterrupted(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "uninterrupted"
    subprocess.run(
        [sys.executable, "-m", "fullfield.cli.main", "train", str(photos), "--out", str(run), *PAIR],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    return run


def cut_and_resume(photos: Path, run: Path, cuts: int, seed: int) -> None:
    """Kill a run so many times at random moments after its start-up, resume it each time, then let it end."""
    chance = random.Random(seed)
    arguments = [str(photos), "--out", str(run), *PAIR, "--checkpoint-every", "2"]
    for _ in range(cuts):
        started = Run(*arguments)
        before = {path.name for path in run.glob("checkpoints/step-*.ckpt")}
        end = time.monotonic() + 120
        while {path.name for path in run.glob("checkpoints/step-*.ckpt")} <= before:
            if started.process.poll() is not None:
                break  # it came to its end
            assert time.monotonic() < end, "no state was saved"
            time.sleep(0.02)
        time.sleep(chance.random())
        assert gone(started.kill())
        arguments = ["--resume", str(run)]
    last = Run("--resume", str(run))
    said, _ = last.process.communicate(timeout=240)
    assert last.process.returncode == 0, said


def test_two_processes_killed_twice_end_as_if_nothing_had_happened(
    photos: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    cut_and_resume(photos, tmp_path / "run", cuts=2, seed=0)
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_killed_twenty_times_end_as_if_nothing_had_happened(
    photos: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    for part in range(4):
        cut_and_resume(photos, tmp_path / str(part), cuts=5, seed=part + 1)
        assert_same_run(tmp_path / str(part), uninterrupted)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_signal_stops_all_processes_with_a_state_and_leaves_no_orphan(
    photos: Path, uninterrupted: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    started = Run(str(photos), "--out", str(run), *PAIR, "--checkpoint-every", "2")
    started.wait_for("checkpoints/step-*.ckpt", run)
    family = started.family()
    assert len(family) >= 3  # the launcher and two that train; their readers come and go
    started.process.send_signal(number)
    said, _ = started.process.communicate(timeout=100)
    assert started.process.returncode == 128 + number, said
    assert f"fullfield train --resume {run}" in said
    assert "Traceback" not in said
    assert gone(family)
    newest_state(RunFolder(run))
    subprocess.run(
        [sys.executable, "-m", "fullfield.cli.main", "train", "--resume", str(run)], check=True, capture_output=True
    )
    assert_same_run(run, uninterrupted)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
def test_killed_command_leaves_no_orphan(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    started = Run(str(photos), "--out", str(run), *PAIR, "--checkpoint-every", "2", "--epochs", "500")
    started.wait_for("checkpoints/step-*.ckpt", run)
    family = started.family()
    started.process.kill()  # the command alone: nobody is left to tell the others
    started.process.communicate()
    assert gone(family)
    newest_state(RunFolder(run))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_lost_process_is_replaced_and_the_run_goes_on_from_its_state(
    photos: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    started = Run(str(photos), "--out", str(run), *PAIR, "--checkpoint-every", "2", "--restarts", "2")
    started.wait_for("checkpoints/step-*.ckpt", run)
    workers = [p for p in started.family() if "fullfield.train.worker" in " ".join(p.cmdline())]
    max(workers, key=lambda p: p.pid).kill()
    said, _ = started.process.communicate(timeout=600)
    assert started.process.returncode == 0, said
    assert_same_run(run, uninterrupted)


# --- other ways to start ---


def test_number_of_processes_may_change_and_the_batch_stays(photos: Path, tmp_path: Path) -> None:
    whole = fullfield.train(photos, out=tmp_path / "whole", **CHECKED).run
    run = tmp_path / "run"
    started = Run(
        *(str(photos), "--out", str(run), *TINY_ARGV, "--devices", "2", "--lr", "1e-4", "--precision", "64"),
        *("--checkpoint-every", "2"),
    )
    started.wait_for("checkpoints/step-*.ckpt", run)
    started.kill()
    fullfield.train(resume=run, devices=1)
    assert losses(run) == pytest.approx(losses(whole), rel=1e-9)
    assert [row["epoch"] for row in read_rows(run / "metrics.csv")] == ["1", "2", "3"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def test_two_hosts_train_one_net_from_the_same_command(photos: Path, alone: Path, tmp_path: Path) -> None:
    """Two launchers that meet at an address, as two machines would."""
    run, port = tmp_path / "run", free_port()
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=7", "--local-addr=127.0.0.1"),
        *("-m", "fullfield.cli.main", "train", str(photos), "--out", str(run), *TINY_ARGV),
        *("--lr", "1e-4", "--precision", "64"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    hosts = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    said = [host.communicate(timeout=240)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    assert losses(run) == pytest.approx(losses(alone), rel=1e-9)
    assert (run / "report.html").exists()
    assert sum("Top-1" in text for text in said) == 1  # one of them speaks


@pytest.mark.slow
def test_launching_outside_the_main_thread_works(photos: Path, tmp_path: Path) -> None:
    results: list[Any] = []
    thread = threading.Thread(
        target=lambda: results.append(fullfield.train(photos, out=tmp_path / "run", devices=2, **TINY | {"epochs": 1}))
    )
    thread.start()
    thread.join()
    assert len(results) == 1


def test_one_process_talks_to_itself() -> None:
    assert ALONE.sum([1.5, 2]) == [1.5, 2]
    assert ALONE.share({"a": 1}) == {"a": 1}
    assert ALONE.collect("x") == ["x"]
    assert ALONE.first
    assert not Processes(rank=1, size=2).first
