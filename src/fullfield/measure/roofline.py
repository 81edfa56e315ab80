"""The roofline of this machine and the bound that it puts on a model's latency.

Source: Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore
architectures" (CACM 2009). An operator takes at least max(FLOPs / peak, bytes / bandwidth) seconds; a model at least
the sum over its operators. The peak is the fastest matrix product seen here and the bandwidth that of a large triad
a = b + s c, so the bound is of what libraries reach on this machine, not of its data sheet. It is a bound for tensors
in main memory: an operator whose maps are still in the cache can beat the part of it that is bandwidth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from fullfield.errors import ConfigError
from fullfield.measure.cost_report import CostReport
from fullfield.measure.cost_trace import OperatorCost
from fullfield.measure.environment import environment
from fullfield.measure.tables import Row

__all__ = ["Machine", "bound_ms", "machine", "operators_bound_ms"]

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TRIAD_BYTES = 2**27  # of each of the three arrays: several times the caches of a CPU or GPU
LONG_ENOUGH_S = 0.05  # a matrix product at least this long is not limited by its start
REPEATS = 7


@dataclass(frozen=True)
class Machine:
    """What one device reaches at best, with one number of threads."""

    device: str
    """Name of the processor."""
    threads: int
    """CPU threads at the time."""
    bytes_per_s: float
    """Of a triad in float32: two arrays read, one written."""
    flops_per_s: dict[str, float]
    """Of a square matrix product, by precision: "float32", and "bf16" and "fp16" where the device has them."""

    def peak(self, precision: str) -> float:
        """Return the peak of a precision, FLOP/s.

        Raises:
            ConfigError: It was not measured.
        """
        if precision not in self.flops_per_s:
            raise ConfigError(
                f"no peak was measured for {precision!r}, only for {', '.join(self.flops_per_s)}; use one of these"
            )
        return self.flops_per_s[precision]

    def to_row(self) -> Row:
        """Return plain values under the names of a CSV's columns."""
        peaks = {f"{name}_gflops_per_s": round(peak / 1e9, 1) for name, peak in self.flops_per_s.items()}
        return {
            "device": self.device,
            "threads": self.threads,
            "gbytes_per_s": round(self.bytes_per_s / 1e9, 2),
            **peaks,
        }


def machine(device: str = "cpu") -> Machine:
    """Measure a device's bandwidth and peak, in a few seconds, once a process and number of threads.

    Args:
        device: "cpu", "cuda", "cuda:1", "mps". Nothing else should run on it meanwhile.
    """
    return _measure(device, torch.get_num_threads())


def bound_ms(report: CostReport, on: Machine, *, batch: int = 1, precision: str = "float32") -> float:
    """Return the least time of a forward pass, in milliseconds: the sum of its operators' bounds.

    Args:
        report: Of the model.
        on: The machine.
        batch: Images a call; weights are read once for all of them.
        precision: "float32", or "bf16" or "fp16", which halve all bytes (autocast, which reads its weights in float32,
            moves more).

    Raises:
        ConfigError: The batch is not positive, or no peak was measured for the precision.
    """
    return operators_bound_ms(report.operators, on, report.element_bytes, batch=batch, precision=precision)


def operators_bound_ms(
    operators: Iterable[OperatorCost], on: Machine, element_bytes: int, *, batch: int = 1, precision: str = "float32"
) -> float:
    """Return the sum of the bounds of some operators, in milliseconds.

    Args:
        operators: As in a `CostGroup`.
        on: As in `bound_ms`, like all that follows.
        element_bytes: Bytes of a real number in the operators' figures, see `CostReport`.
        batch: Images a call.
        precision: "float32", "bf16" or "fp16".

    Raises:
        ConfigError: As in `bound_ms`.
    """
    if batch < 1:
        raise ConfigError(f"batch must be at least 1, got {batch}")
    peak = on.peak(precision)
    scale = DTYPES[precision].itemsize / element_bytes
    seconds = (
        max(batch * op.flops / peak, scale * (op.weight_bytes + batch * op.map_bytes) / on.bytes_per_s)
        for op in operators
    )
    return 1e3 * sum(seconds)


@cache
def _measure(device: str, threads: int) -> Machine:
    peaks = {name: peak for name, dtype in DTYPES.items() if (peak := _peak(device, dtype)) is not None}
    return Machine(environment(device)["device"], threads, _bandwidth(device), peaks)


def _bandwidth(device: str) -> float:
    a, b, c = (torch.ones(TRIAD_BYTES // 4, device=device) for _ in range(3))
    return 3 * TRIAD_BYTES / _least_seconds(lambda: torch.add(b, c, alpha=0.5, out=a), device)


def _peak(device: str, dtype: torch.dtype) -> float | None:
    """Return the FLOP/s of a matrix product that takes `LONG_ENOUGH_S`; None where the dtype is not there."""
    side = 256
    while True:
        try:
            a, b = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
            seconds = _least_seconds(lambda a=a, b=b: a @ b, device)  # type: ignore[misc]
        except (RuntimeError, TypeError):
            return None
        if seconds > LONG_ENOUGH_S / 8 or side >= 8192:  # the next side would take eight times as long
            return 2 * side**3 / seconds
        side *= 2


def _least_seconds(call: Callable[[], Any], device: str) -> float:
    call()
    best = float("inf")
    for _ in range(REPEATS):
        _synchronise(device)
        start = time.perf_counter()
        call()
        _synchronise(device)
        best = min(best, time.perf_counter() - start)
    return best


def _synchronise(device: str) -> None:
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()
