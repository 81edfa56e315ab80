"""Peak memory against allocations of known size."""

from __future__ import annotations

import sys

import pytest
import torch

from fullfield.measure.memory import peak_memory_mb

linux = pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process can be reset on Linux only")


@linux
@pytest.mark.parametrize("mb", [8, 64, 200])
def test_the_peak_is_what_a_call_holds_at_once(mb: int) -> None:
    def call() -> None:
        first = torch.ones(mb * 2**18)
        second = first + 1
        del first
        second.add_(1)

    call()
    measured = peak_memory_mb(call)
    assert measured is not None
    assert 2 * mb * 0.98 < measured < 2 * mb + 8


@linux
def test_what_was_held_before_does_not_count() -> None:
    held = torch.ones(100 * 2**18)
    measured = peak_memory_mb(lambda: held.sum())
    assert measured is not None
    assert measured < 8


def test_an_unknown_system_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fullfield.measure.memory._reset_peak", lambda: False)
    assert peak_memory_mb(lambda: None) is None
