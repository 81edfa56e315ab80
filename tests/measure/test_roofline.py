"""Roofline bounds by arithmetic on a machine that is made up, and that a real one is measured at all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fullfield.errors import ConfigError
from fullfield.measure import roofline
from fullfield.measure.cost_report import cost_report
from fullfield.measure.roofline import Machine, bound_ms, machine

MADE_UP = Machine("made up", 1, bytes_per_s=1e3, flops_per_s={"float32": 1e4, "bf16": 4e4})


def test_a_bound_is_the_longer_of_computing_and_moving_summed_over_operators() -> None:
    # 3 -> 40 channels and 40 -> 1 on 4 x 4 pixels, without bias
    model = nn.Sequential(nn.Conv2d(3, 40, 1, bias=False), nn.Conv2d(40, 1, 1, bias=False))
    report = cost_report(model, image_size=4)
    first = max(2 * 16 * 120 / 1e4, 4 * (120 + 16 * 43) / 1e3)
    second = max(2 * 16 * 40 / 1e4, 4 * (40 + 16 * 41) / 1e3)
    assert bound_ms(report, MADE_UP) == pytest.approx(1e3 * (first + second))


def test_weights_are_read_once_a_batch_and_computing_wins_where_the_intensity_is_high() -> None:
    report = cost_report(nn.Conv2d(3, 40, 1, bias=False), image_size=4)
    assert bound_ms(report, MADE_UP, batch=10) == pytest.approx(4 * (120 + 10 * 16 * 43))
    fast = Machine("made up", 1, bytes_per_s=1e9, flops_per_s={"float32": 1e4})
    assert bound_ms(report, fast, batch=10) == pytest.approx(1e3 * 10 * 2 * 16 * 120 / 1e4)


def test_half_precision_halves_the_bytes() -> None:
    report = cost_report(nn.Conv2d(3, 40, 1, bias=False), image_size=4)
    halved = bound_ms(report, MADE_UP) / 2
    assert bound_ms(report, MADE_UP, precision="bf16") == pytest.approx(halved)
    half = cost_report(nn.Conv2d(3, 40, 1, bias=False).bfloat16(), image_size=4)
    assert half.element_bytes == 2
    assert bound_ms(half, MADE_UP, precision="bf16") == pytest.approx(halved)


def test_this_machine_is_measured_once_a_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "TRIAD_BYTES", 2**22)
    monkeypatch.setattr(roofline, "LONG_ENOUGH_S", 1e-3)
    roofline._measure.cache_clear()
    found = machine()
    assert found is machine()
    assert found.threads == torch.get_num_threads()
    assert 1e8 < found.bytes_per_s < 1e13
    assert 1e8 < found.peak("float32") < 1e15
    assert found.to_row()["float32_gflops_per_s"] == round(found.peak("float32") / 1e9, 1)
    roofline._measure.cache_clear()


def test_bad_input_is_named() -> None:
    report = cost_report(nn.Conv2d(3, 4, 1), image_size=4)
    with pytest.raises(ConfigError, match="no peak was measured for 'fp16', only for float32, bf16"):
        bound_ms(report, MADE_UP, precision="fp16")
    with pytest.raises(ConfigError, match="batch must be at least 1, got 0"):
        bound_ms(report, MADE_UP, batch=0)
