"""Timing calls against each other so that a noisy machine does not decide.

Candidates are called in turn, round after round, in an order that changes every round; a ratio is taken inside each
round and then summarised over rounds, so that what slows the machine down for a while slows both sides of it. The
spread that goes with a ratio is the range from the 10th to the 90th percentile of the rounds' ratios: it says what one
more round might show, and is wider than a confidence interval of the median.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

__all__ = ["Ratio", "Samples", "ratio", "time_interleaved"]

TOO_SHORT_S = 2e-3  # a sample shorter than this is mostly the clock and the interpreter: several calls make one


@dataclass(frozen=True)
class Samples:
    """Seconds of one call of a candidate, one number a round."""

    seconds: tuple[float, ...]

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile of the latency, milliseconds."""
        return float(np.percentile(self.seconds, percent)) * 1e3

    @property
    def median_s(self) -> float:
        """The median, seconds."""
        return float(np.median(self.seconds))


@dataclass(frozen=True)
class Ratio:
    """How many times as fast one candidate is as another: median over rounds, and the 10th and 90th percentile."""

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median:.2f} × ({self.low:.2f}–{self.high:.2f})"


def ratio(candidate: Samples, peer: Samples) -> Ratio:
    """Return the speed of `candidate` over that of `peer`: above 1, the candidate is faster.

    Args:
        candidate: Of the same `time_interleaved` call as `peer`.
        peer: What it is compared with.

    Raises:
        ValueError: The numbers of rounds differ, so that the two were not timed together.
    """
    if len(candidate.seconds) != len(peer.seconds):
        raise ValueError(
            f"{len(candidate.seconds)} and {len(peer.seconds)} rounds: a ratio needs candidates timed together"
        )
    pairs = np.asarray(peer.seconds) / np.asarray(candidate.seconds)
    low, median, high = np.percentile(pairs, (10, 50, 90))
    return Ratio(float(median), float(low), float(high), len(pairs))


def time_interleaved(
    calls: Mapping[str, Callable[[], Any]],
    *,
    seconds: float = 10.0,
    min_rounds: int = 5,
    max_rounds: int = 1000,
    warm_up: int = 2,
    on_round: Callable[[int], None] | None = None,
) -> dict[str, Samples]:
    """Time callables in turn.

    Args:
        calls: Name -> what to time, without arguments. On a GPU the device is synchronised around each.
        seconds: Stop after about this long, warm-up not counted, but not before `min_rounds`.
        min_rounds: At least so many samples of each.
        max_rounds: At most so many.
        warm_up: Calls of each that are not counted.
        on_round: Told the number of rounds done, for a progress bar.

    Returns:
        The samples by name, all of one length.
    """
    repeats = {}
    for name, call in calls.items():
        for _ in range(warm_up):
            once = _seconds(call, 1)
        repeats[name] = max(1, int(TOO_SHORT_S / max(once, 1e-7))) if warm_up else 1
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffle = list(calls), random.Random(0)
    start = time.perf_counter()
    for done in range(max_rounds):
        if done >= min_rounds and time.perf_counter() - start >= seconds:
            break
        shuffle.shuffle(order)
        for name in order:
            samples[name].append(_seconds(calls[name], repeats[name]))
        if on_round is not None:
            on_round(done + 1)
    return {name: Samples(tuple(values)) for name, values in samples.items()}


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    """Return seconds a call, over `repeats` calls."""
    _synchronise()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    _synchronise()
    return (time.perf_counter() - start) / repeats


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()
