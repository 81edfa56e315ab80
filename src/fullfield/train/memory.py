"""Foresee the memory of a training step before the first one, and say what to change where it will not fit.

The step is counted on tensors without memory (`measure.cost_training`), at two small batches. What autograd keeps is
linear in the batch (so many maps an image), and nearly so what comes and goes, so the two give the need of any batch,
and the largest batch that fits. To it come the averaged weights, and the buckets in which processes sum gradients.

Not counted: the processes that read images, what kernels allocate inside themselves, and what the allocator keeps of
freed memory; `SLACK` stands for these. A model that can't be counted is no error: it is trained uncounted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.markup import escape
from torch import nn

from fullfield.errors import ConfigError
from fullfield.measure.cost_training import TrainingMemory, training_memory
from fullfield.progress import console

__all__ = ["SLACK", "Forecast", "available_bytes", "foresee"]

SLACK = {"cpu": 1.5, "cuda": 1.1}
"""What a process takes for each byte of its tensors. On a CPU steps took 1.1 to 1.5 times the count, and more under
gradient checkpointing, whose many short-lived tensors leave holes in the heap: 1.4 to 3, the less the larger the step
(glibc; steps of 200 to 700 MB). On CUDA it is a guess."""
_BATCHES = (2, 8)  # BatchNorm on a single pixel needs two values
_UNLIMITED = 2**60  # what control groups write where there is no limit is about 2**63


@dataclass(frozen=True)
class Forecast:
    """Bytes that one process needs in a training step, beside what it has."""

    batch: int
    """Images a step, of this process."""
    weight_bytes: int
    """Parameters and buffers."""
    gradient_bytes: int
    """Gradients of what is trained."""
    optimizer_bytes: int
    """State of the optimiser."""
    average_bytes: int
    """The averaged weights, 0 without averaging."""
    bucket_bytes: int
    """The copies of gradients that several processes sum, 0 for a single process."""
    activation_bytes: int
    """What autograd keeps from the forward pass for the backward pass."""
    working_bytes: int
    """What comes and goes inside the two passes; under gradient checkpointing the stage that is computed again."""
    slack: float
    """Of the allocator, see `SLACK`."""
    available_bytes: int | None
    """What the process may use, its weights included; None where the system does not tell."""
    fitting_batch: int | None = None
    """The largest smaller batch that fits: a multiple of 8, or 4 or 2; None where none does or none is needed."""
    checkpointed_bytes: int | None = None
    """The need of the same batch with gradient checkpointing; None where it is on, not to be had, or not needed."""
    checkpointed_batch: int | None = None
    """As `fitting_batch`, with gradient checkpointing; only where nothing less helps."""

    @property
    def needed_bytes(self) -> int:
        """The sum of the parts, which is the most that tensors hold at once, with the allocator's slack."""
        held = self.weight_bytes + self.gradient_bytes + self.optimizer_bytes + self.average_bytes + self.bucket_bytes
        return round((held + self.activation_bytes + self.working_bytes) * self.slack)

    @property
    def fits(self) -> bool:
        """Whether the need is available; true where the system does not tell."""
        return _fits(self.needed_bytes, self.available_bytes)

    def summary(self) -> str:
        """Return the need and what there is in words, "about 1.2 GB of 8.0 GB" (GB of 2^30 bytes)."""
        there = "" if self.available_bytes is None else f" of {_gb(self.available_bytes)}"
        return f"about {_gb(self.needed_bytes)}{there}"

    def advice(self, parts: int = 1) -> str:
        """Return what to change, by the count, or "" where the step fits.

        Args:
            parts: Processes times accumulated batches that --batch-size is divided among.
        """
        if self.fits:
            return ""
        ways = []
        if self.fitting_batch is not None:
            ways.append(f"--batch-size {self.fitting_batch * parts}")
        if self.checkpointed_bytes is not None and _fits(self.checkpointed_bytes, self.available_bytes):
            ways.append("--grad-checkpointing")
        if not ways and self.checkpointed_batch is not None:
            ways.append(f"--grad-checkpointing with --batch-size {self.checkpointed_batch * parts}")
        return f"needs {self.summary()}: try {' or '.join(ways or ['a smaller --model or --image-size'])}"


def foresee(
    model: nn.Module,
    *,
    batch: int,
    image_size: int,
    channels: int = 3,
    optimizer: str = "adamw",
    ema: bool,
    mixed: bool,
    checkpointing: bool,
    world_size: int = 1,
    device: torch.device,
) -> Forecast | None:
    """Count what a training step will hold on a device, before anything is put there.

    Args:
        model: To be trained, anywhere; what is frozen needs no gradient. It is left as it was.
        batch: Images a step of each process.
        image_size: Side of the square image, pixels.
        channels: Of the image.
        optimizer: "sgd", "sgd_momentum" or "adamw".
        ema: Whether the weights are averaged: one more copy of them.
        mixed: Whether the model runs under autocast to a half type.
        checkpointing: Whether gradient checkpointing will be on.
        world_size: Processes that train together; on a CPU they are taken to share this machine's memory.
        device: Where it will train.

    Returns:
        The forecast; None where the model can't be counted (it can't run on tensors without memory, the optimizer is
        another, it has no gradient checkpointing); a line on the screen says why.
    """
    counting = _Counting(model, image_size, channels, optimizer, mixed, device)
    slack = SLACK.get(device.type, SLACK["cpu"])
    extras = _Extras(ema, world_size, slack, _available_to(model, device, world_size))
    try:
        if _BATCHES[0] <= batch <= _BATCHES[1]:  # one count will do, if it fits
            found = extras.forecast(batch, counting.count(batch, checkpointing))
            if found.fits:
                return found
        at = counting.line(checkpointing)
    except Exception as error:  # a model of anyone's may do what fake tensors can't: read values, call its own kernels
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        console.print(
            f"The memory of a training step of {type(model).__name__} can't be counted ({escape(reason)})",
            style="dim",
            soft_wrap=True,
        )
        return None
    found = extras.forecast(batch, at(batch))
    if found.fits:
        return found
    smaller = extras.largest(batch, at)
    if checkpointing:
        return replace(found, fitting_batch=smaller)
    try:
        with_checkpoints = counting.line(True)
    except ConfigError:  # the model has none
        return replace(found, fitting_batch=smaller)
    return replace(
        found,
        fitting_batch=smaller,
        checkpointed_bytes=extras.forecast(batch, with_checkpoints(batch)).needed_bytes,
        checkpointed_batch=extras.largest(batch, with_checkpoints),
    )


@dataclass(frozen=True)
class _Counting:
    """What is counted, but for the batch."""

    model: nn.Module
    image_size: int
    channels: int
    optimizer: str
    mixed: bool
    device: torch.device

    def count(self, batch: int, checkpointing: bool) -> TrainingMemory:
        """Return the count of one batch."""
        return training_memory(
            self.model,
            batch=batch,
            optimizer=self.optimizer,
            precision="bf16" if self.mixed else "float32",
            image_size=self.image_size,
            channels=self.channels,
            checkpointing=checkpointing,
            device=self.device,
        )

    def line(self, checkpointing: bool) -> Callable[[int], TrainingMemory]:
        """Return the count of any batch, from those of two."""
        low, high = (self.count(batch, checkpointing) for batch in _BATCHES)

        def at(batch: int) -> TrainingMemory:
            return replace(
                high,
                batch=batch,
                activation_bytes=_along(batch, low.activation_bytes, high.activation_bytes),
                working_bytes=_along(batch, low.working_bytes, high.working_bytes),
            )

        return at


@dataclass(frozen=True)
class _Extras:
    """What a run holds beside the count, and what it may hold."""

    ema: bool
    world_size: int
    slack: float
    available_bytes: int | None

    def forecast(self, batch: int, count: TrainingMemory) -> Forecast:
        return Forecast(
            batch,
            count.weight_bytes,
            count.gradient_bytes,
            count.optimizer_bytes,
            count.weight_bytes if self.ema else 0,
            count.gradient_bytes if self.world_size > 1 else 0,
            count.activation_bytes,
            count.working_bytes,
            self.slack,
            self.available_bytes,
        )

    def largest(self, batch: int, at: Callable[[int], TrainingMemory]) -> int | None:
        """Return the largest batch below `batch` that fits."""
        smaller = [size for size in (*range((batch - 1) // 8 * 8, 0, -8), 4, 2) if size < batch]
        return next((size for size in smaller if self.forecast(size, at(size)).fits), None)


def _along(batch: int, low: int, high: int) -> int:
    """Return the bytes of `batch` on the line through those of the two batches counted."""
    first, second = _BATCHES
    return max(0, round(low + (high - low) * (batch - first) / (second - first)))


def _available_to(model: nn.Module, device: torch.device, world_size: int) -> int | None:
    """Return what one process may use; what the model has there already is part of the need, so also of this."""
    free = available_bytes(device)
    if free is None:
        return None
    if device.type != "cuda":
        free //= world_size
    there = (t for t in (*model.parameters(), *model.buffers()) if t.device.type == device.type)
    held: int = sum(t.numel() * t.element_size() for t in there)
    return free + held


def available_bytes(device: torch.device, *, root: Path = Path("/")) -> int | None:
    """Return the memory that this process may still take on a device, bytes.

    On CUDA that is what the driver has free and what PyTorch's allocator holds unused. On a CPU (and on "mps", which
    shares its memory) it is the least of what the system says is available and what every control group above the
    process leaves of its limit (a container's, a scheduler's job); files that are only cached count as free.

    Args:
        device: Where.
        root: The root of /proc and /sys, for tests.

    Returns:
        Bytes; None where the system does not tell.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type not in ("cpu", "mps"):
        return None
    found = [_system_bytes(root), *_cgroup_bytes(root)]
    return max(0, min(known)) if (known := [value for value in found if value is not None]) else None


def _system_bytes(root: Path) -> int | None:
    """Return MemAvailable of Linux, else the free pages that POSIX tells of, else all pages."""
    kilobytes = _entries(root / "proc/meminfo").get("MemAvailable")
    if kilobytes is not None:
        return kilobytes * 1024
    for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"):
        with suppress(ValueError, OSError, AttributeError):  # not POSIX, or a name that this system lacks
            return int(os.sysconf(name) * os.sysconf("SC_PAGE_SIZE"))
    return None


def _cgroup_bytes(root: Path) -> Iterator[int]:
    """Yield what each control group with a limit leaves, of version 2 and 1, from the process's own upwards."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            base, limit, usage, cached = "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, limit, usage = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cached = "total_inactive_file"
        else:
            continue
        top = root / base
        own = top / path.lstrip("/")
        for group in (own, *own.parents):  # in a container the path may not be there, and the top is its own group
            if not group.is_relative_to(top):
                break
            most, used = _text(group / limit).strip(), _text(group / usage).strip()
            if most.isdigit() and used.isdigit() and int(most) < _UNLIMITED:
                yield int(most) - int(used) + _entries(group / "memory.stat").get(cached, 0)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _entries(path: Path) -> dict[str, int]:
    """Return the numbers of a file of lines such as "MemAvailable:  123 kB" or "inactive_file 123"."""
    pairs = (line.replace(":", " ").split() for line in _text(path).splitlines())
    return {words[0]: int(words[1]) for words in pairs if len(words) > 1 and words[1].isdigit()}


def _fits(needed_bytes: int, available: int | None) -> bool:
    return available is None or needed_bytes <= available


def _gb(count: int) -> str:
    return f"{count / 2**30:.1f} GB"
