"""Constant memory in the number of images, and going on with half the batch where memory runs out."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fullfield.errors import ConfigError
from fullfield.measure import erf_average
from fullfield.measure.erf import erf


def peak_bytes(count: int) -> int:
    """Return the highest memory that numpy held while `count` images were averaged."""
    model = nn.Conv2d(3, 4, 3, padding=1)
    tracemalloc.start()
    erf(model, None, "output", image_size=64, count=count, batch_size=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    peak_bytes(1)  # imports and caches
    one_map = 64 * 64 * 8
    assert peak_bytes(80) < peak_bytes(20) + one_map


class Greedy(nn.Module):
    """Runs out of memory with more than `most` images."""

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__()
        self.conv, self.most, self.error = nn.Conv2d(3, 4, 3, padding=1), most, error
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.shape[0])
        if x.shape[0] > self.most:
            raise self.error
        return self.conv(x)


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
]
DEVICES = ["GPU", "CPU", "MPS"]


@pytest.mark.parametrize("error", ERRORS, ids=DEVICES)
def test_the_batch_is_halved_and_the_result_is_the_same(error: Exception, capsys: Any) -> None:
    model = Greedy(2, error).double()
    images = torch.randn(10, 3, 16, 16, dtype=torch.float64)
    result = erf(model, images, "output", batch_size=8)
    assert "out of memory with 8 images at a time; going on with 4" in capsys.readouterr().err
    sizes = [size for size in model.seen if size > 1]
    assert sizes == [8, 4, 2, 2, 2, 2, 2]
    assert result.squares == erf(model, images, "output", batch_size=2).squares


@pytest.mark.parametrize("error", ERRORS, ids=DEVICES)
def test_an_image_that_is_too_large_for_memory_is_refused(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(erf_average, "contributions", fail)
    with pytest.raises(ConfigError, match="does not suffice for one image of 16 x 16 pixels; use a smaller image_size"):
        erf(nn.Conv2d(3, 4, 3), None, "output", image_size=16, batch_size=4)


def test_memory_that_fails_before_the_average_is_told_too() -> None:
    model = Greedy(0, ERRORS[0])
    with pytest.raises(ConfigError, match="does not suffice for one image of 16 x 16 pixels"):
        erf(model, None, "output", image_size=16)


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(erf_average, "contributions", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        erf(nn.Conv2d(3, 4, 3), None, "output", image_size=16)
