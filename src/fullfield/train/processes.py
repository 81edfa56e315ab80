"""Several processes that train one net together: who they are, how they start, and what they tell one another.

Processes are started by `torchrun` (by `launch` here, or by the user, over as many machines as there are) or by SLURM;
both leave a process's rank in its environment, which is read through Lightning's cluster environments. What the
processes tell one another beside gradients goes through a process group on CPUs (gloo), so that no GPU waits for it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from fullfield.errors import TrainingError
from fullfield.train import launcher

__all__ = ["ALONE", "Processes", "ignore_stop_signals", "is_restart", "join", "launch", "leave"]

READER_GRACE_S = 60
PATIENCE = timedelta(hours=2)  # others wait this long for the first one, which evaluates


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them."""

    rank: int = 0
    """Of this process, over all machines."""
    size: int = 1
    """How many there are."""
    local_size: int = 1
    """How many there are on this machine."""
    group: Any = None
    """For `sum` and `share`; None where there is one process."""

    def __deepcopy__(self, _: Any) -> Processes:
        """Return itself: a copy of a net that holds it is in the same process."""
        return self

    @property
    def first(self) -> bool:
        """Whether this process writes files and the screen."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all processes, the same bits in each; all must call it."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.group)
        summed: list[float] = tensor.tolist()
        return summed

    def share(self, value: Any) -> Any:
        """Return the first process's value in each; all must call it."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def collect(self, value: Any) -> list[Any]:
        """Return every process's value, by rank, in each; all must call it."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.group)
        return found


ALONE = Processes()


def _environment() -> ClusterEnvironment | None:
    """Return who started this process together with others, if anyone did."""
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if SLURMEnvironment.detect() and int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        return SLURMEnvironment()
    return None


def is_restart() -> bool:
    """Whether torchrun started this process again after one was lost, or SLURM the whole job."""
    return any(int(os.environ.get(name, "0")) > 0 for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def join(device: torch.device) -> Processes:
    """Meet the other processes that torchrun or SLURM started; without any, return `ALONE`.

    Args:
        device: Gradients go through NCCL on GPUs, and through gloo elsewhere.
    """
    found = _environment()
    if found is None or found.world_size() == 1:
        return ALONE
    if not dist.is_initialized():
        os.environ.setdefault("MASTER_ADDR", found.main_address)
        os.environ.setdefault("MASTER_PORT", str(found.main_port))
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=found.global_rank(), world_size=found.world_size(), timeout=PATIENCE)
    group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=PATIENCE)
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or 1)
    return Processes(found.global_rank(), found.world_size(), local_size, group)


def leave() -> None:
    """Part from the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def launch(arguments: Sequence[str], processes: int, *, restarts: int = 0) -> None:
    """Run `python -m fullfield.train.worker ARGUMENTS` in several processes on this machine, and wait for them.

    Ctrl-C and SIGTERM are passed on once, so that the processes save their state and end; a second Ctrl-C kills them.

    Args:
        arguments: Of the worker.
        processes: How many.
        restarts: How often to start them again if one is lost.

    Raises:
        KeyboardInterrupt: Ctrl-C, after all have ended.
        SystemExit: SIGTERM, after all have ended; its code is 143.
        TrainingError: One of them failed; it has said why.
    """
    command = [
        # by its path: the launcher itself needs nothing of the package, which takes seconds to import
        *(sys.executable, "-P", launcher.__file__, "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"),
        *("--local-addr=127.0.0.1", f"--nproc-per-node={processes}", f"--max-restarts={restarts}"),
        *("--monitor-interval=0.2", "-m", "fullfield.train.worker", *arguments),
    ]
    threads = str(max(1, torch.get_num_threads() // processes))
    environment = {"OMP_NUM_THREADS": threads, "LOGLEVEL": "ERROR"} | os.environ
    if sys.platform == "darwin":  # gloo finds no address under some host names there
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo0")
    # a session of their own: the terminal's Ctrl-C reaches this process alone, which passes it on once
    child = subprocess.Popen(command, env=environment, start_new_session=True)  # noqa: S603 - our own module
    received: list[int] = []

    def forward(number: int, _: Any) -> None:
        received.append(number)
        with suppress(ProcessLookupError):
            if len(received) == 1:
                child.send_signal(number)
            else:
                os.killpg(child.pid, signal.SIGKILL)

    main = threading.current_thread() is threading.main_thread()  # no other thread may set handlers
    stops = (signal.SIGINT, signal.SIGTERM) if main else ()
    before = {number: signal.signal(number, forward) for number in stops}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    if received:
        if received[0] == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt
    if code:
        raise TrainingError(f"one of the {processes} processes failed (exit code {code}); its message stands above")


def ignore_stop_signals(_: int) -> None:
    """In a process that reads images: leave stopping to the one that trains, and end with it (`worker_init_fn`)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # torchrun and SLURM tell every process of a job to end, and the step that is under way needs its images; but it is
    # also how PyTorch ends a reader that hangs
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(READER_GRACE_S))
    launcher.die_with_parent()
