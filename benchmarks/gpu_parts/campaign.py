"""What every part shares: the device, the sizes, the clock that ends the campaign, and how a call is timed."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

Row = dict[str, Any]
MOST_SECONDS = 1.5  # of one measurement
FLUSH_BYTES = 256 * 2**20  # several times the second-level cache of any card


@dataclass
class Campaign:
    """One run of the campaign.

    Args:
        device: "cuda", or "cpu" for a dry run.
        dry: Tiny sizes and single repetitions, which show only that every line runs.
        deadline: `time.monotonic()` at which no further measurement starts.
    """

    device: str
    dry: bool
    deadline: float
    failures: list[str] = field(default_factory=list)

    def batch(self, images: int) -> int:
        """Return the batch size, two when dry."""
        return 2 if self.dry else images  # two, because batch norms of one pixel need them

    def out_of_time(self) -> bool:
        """Whether nothing more may be started."""
        return time.monotonic() > self.deadline

    def attempt(self, what: str, call: Callable[[], Any]) -> Any:
        """Return the call's result; where it fails or the time is spent, note why and return None."""
        if self.out_of_time():
            self.failures.append(f"{what}: not run, out of time")
            return None
        try:
            return call()
        except Exception as error:  # one kernel that a card refuses must not cost the whole campaign
            reason = str(error).strip().splitlines() or [""]
            self.failures.append(f"{what}: {type(error).__name__}: {reason[0][:200]}")
            return None
        finally:
            gc.collect()
            if self.device == "cuda":
                torch.cuda.empty_cache()

    def time_us(self, call: Callable[[], Any], repetitions: int = 20, flush: bool = True) -> float:
        """Return the median time of a call in microseconds, with a cold second-level cache where `flush`."""
        if self.device != "cuda":
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start) * 1e6
        call()
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        repetitions = max(3, min(repetitions, int(MOST_SECONDS / (time.perf_counter() - start))))
        cache = torch.empty(FLUSH_BYTES if flush else 0, dtype=torch.int8, device="cuda")
        marks = [
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repetitions)
        ]
        for start, end in marks:
            cache.zero_()  # also keeps the card busy while the call's kernels are queued
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in marks) * 1e3

    def peak_mb(self, call: Callable[[], Any]) -> float | None:
        """Return by how much a call raises allocated memory at its highest, in MB; None on a CPU."""
        if self.device != "cuda":
            call()
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6


def digits(value: float | None, places: int = 1) -> str:
    """Return a figure as text, empty where there is none."""
    return "" if value is None else f"{value:.{places}f}"
