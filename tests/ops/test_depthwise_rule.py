"""The rule of depthwise_conv2d: what it picks, and that measuring it again gives one row for everything there is."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import pytest
import torch

from fullfield.measure.op_speed import DEPTHWISE_CASES, DepthwiseCase, bench_depthwise
from fullfield.ops import PATHS
from fullfield.ops.depthwise_fft import fft_size
from fullfield.ops.depthwise_rule import DIRECTIONS, fastest_path
from fullfield.ops.depthwise_shape import DepthwiseShape

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "depthwise_cpu.csv"
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def picked(case: DepthwiseCase, direction: str, channels_last: bool, batch: int = 8) -> str:
    return fastest_path(direction, case.shape(batch, 128).cropped(), torch.float32, channels_last)


@pytest.mark.parametrize("case", DEPTHWISE_CASES, ids=str)
def test_the_rule_picks_an_existing_path_for_every_measured_case(case: DepthwiseCase) -> None:
    for direction, channels_last, dtype in itertools.product(DIRECTIONS, (False, True), DTYPES):
        shape = case.shape(8, 128).cropped()
        assert fastest_path(direction, shape, dtype, channels_last) in PATHS["depthwise_conv2d"]


def test_training_with_a_large_kernel_never_takes_pytorch_s_slow_gradient_of_the_weight() -> None:
    for kernel, side, channels_last in itertools.product((7, 13, 21, 31, 51), (14, 28, 56), (False, True)):
        assert picked(DepthwiseCase((kernel, kernel), side), "grad_weight", channels_last) != "native"


def test_wide_kernels_on_nchw_maps_never_take_pytorch_s_slow_forward() -> None:
    for width, side in itertools.product((15, 21, 31, 51), (14, 28, 56)):
        for kernel in ((width, width), (5, width)):
            assert picked(DepthwiseCase(kernel, side), "forward", False) in ("channels_last", "fft")


def test_the_transform_is_for_large_maps_under_large_kernels() -> None:
    assert picked(DepthwiseCase((31, 31), 56), "forward", False) == "fft"
    assert picked(DepthwiseCase((31, 31), 14), "forward", False) == "channels_last"
    assert picked(DepthwiseCase((7, 7), 56), "forward", False) == "native"


def test_many_small_maps_give_the_gradient_of_the_weight_as_one_matrix_a_channel() -> None:
    assert picked(DepthwiseCase((13, 13), 7), "grad_weight", True, batch=64) == "toeplitz"


def test_dead_taps_are_those_of_kernels_wider_than_the_map() -> None:
    assert DepthwiseCase((51, 5), 7).shape(1, 1).cropped().kernel == (13, 5)
    assert DepthwiseCase((13, 13), 7).shape(1, 1).cropped().kernel == (13, 13)
    assert DepthwiseCase((7, 7), 7, dilation=3).shape(1, 1).cropped().kernel == (5, 5)


@pytest.mark.parametrize(("side", "kernel"), [(56, 31), (14, 27), (97, 51), (1, 1), (7, 3)])
def test_transform_sizes_are_smooth_and_free_of_wrap_around(side: int, kernel: int) -> None:
    shape = DepthwiseShape(1, 1, (side, side), (kernel, kernel), 1, (kernel // 2, kernel // 2), 1)
    for size in fft_size(shape):
        rest = size
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        assert rest == 1
        assert size % 4 == 0
        assert side + kernel // 2 <= size


def test_measuring_gives_a_row_for_every_path_and_the_rule(tmp_path: Path) -> None:
    case = DepthwiseCase((5, 5), 6)
    told: list[float] = []
    measured = bench_depthwise((case,), batch=2, channels=4, rounds=1, on_progress=lambda _, share: told.append(share))
    assert told == [0.0, 0.5]
    paths = set(PATHS["depthwise_conv2d"])
    for layout in ("nchw", "channels_last"):
        for direction in DIRECTIONS:
            rows = [row for row in measured.rows if (row.layout, row.direction) == (layout, direction)]
            assert {row.path for row in rows} - {"rule"} == paths
            assert sum(row.is_chosen for row in rows if row.path != "rule") == 1
            assert max(row.of_fastest for row in rows) == 1
    assert "5x5 at 6" in measured.table()
    with measured.save(tmp_path / "rows.csv").open(encoding="utf-8") as file:
        saved = list(csv.DictReader(file))
    assert len(saved) == len(measured.rows)
    assert {"kernel_height", "ms", "over_native", "threads", "torch"} <= set(saved[0])


@pytest.mark.skipif(not RESULTS.exists(), reason="the stored figures are not part of the package")
def test_the_stored_figures_cover_every_case_in_both_layouts() -> None:
    with RESULTS.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = ("kernel_height", "kernel_width", "side", "stride", "dilation", "layout")
    stored = {tuple(row[column] for column in columns) for row in rows}
    for case, layout in itertools.product(DEPTHWISE_CASES, ("nchw", "channels_last")):
        assert (*map(str, (*case.kernel, case.side, case.stride, case.dilation)), layout) in stored
