"""Timing against clocks that are set by the test, so that no assertion depends on the machine."""

from __future__ import annotations

import numpy as np
import pytest

from fullfield.measure import timing
from fullfield.measure.timing import Samples, ratio, time_interleaved


class Clock:
    """A clock that only the timed calls advance."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def takes(self, *seconds: float):
        """Return a call that takes these seconds in turn, the last for ever."""
        left = list(seconds)

        def call() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


def test_every_candidate_is_sampled_once_a_round_and_warm_up_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    calls = {"a": clock.takes(9.0, 9.0, 1.0), "b": clock.takes(9.0, 9.0, 2.0)}
    samples = time_interleaved(calls, seconds=0, min_rounds=4, warm_up=2)
    assert samples["a"].seconds == pytest.approx([1.0] * 4)
    assert samples["b"].seconds == pytest.approx([2.0] * 4)


def test_rounds_go_on_until_the_time_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    rounds: list[int] = []
    samples = time_interleaved({"a": clock.takes(1.0)}, seconds=7.5, min_rounds=2, on_round=rounds.append)
    assert len(samples["a"].seconds) == 8
    assert rounds == list(range(1, 9))
    assert len(time_interleaved({"a": clock.takes(1.0)}, seconds=100, max_rounds=3)["a"].seconds) == 3


def test_a_call_that_is_shorter_than_the_clock_is_repeated_within_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, count = Clock(monkeypatch), 0

    def call() -> None:
        nonlocal count
        count += 1
        clock.now += 1e-4

    samples = time_interleaved({"a": call}, seconds=0, min_rounds=1, warm_up=1)
    assert samples["a"].seconds == pytest.approx([1e-4])
    assert count == 1 + 20


def test_a_ratio_is_the_median_of_the_rounds_and_forgives_a_machine_that_slows_down() -> None:
    slowdown = np.array([1, 1, 1, 7, 7, 7, 7, 7, 1, 1])
    fast, slow = Samples(tuple(0.1 * slowdown)), Samples(tuple(0.25 * slowdown))
    found = ratio(fast, slow)
    assert (found.median, found.low, found.high, found.rounds) == pytest.approx((2.5, 2.5, 2.5, 10))
    assert ratio(slow, fast).median == pytest.approx(0.4)
    assert str(found) == "2.50 × (2.50–2.50)"


def test_the_spread_is_the_tenth_to_the_ninetieth_percentile() -> None:
    pairs = np.linspace(1, 2, 11)
    found = ratio(Samples((1.0,) * 11), Samples(tuple(pairs)))
    assert (found.low, found.median, found.high) == pytest.approx((1.1, 1.5, 1.9))


def test_candidates_that_were_not_timed_together_have_no_ratio() -> None:
    with pytest.raises(ValueError, match="3 and 2 rounds"):
        ratio(Samples((1.0,) * 3), Samples((1.0,) * 2))


def test_percentiles_are_in_milliseconds() -> None:
    samples = Samples(tuple(np.arange(1, 101) / 1000))
    assert samples.percentile_ms(50) == pytest.approx(50.5)
    assert samples.percentile_ms(99) == pytest.approx(99.01)
    assert samples.median_s == pytest.approx(0.0505)
