"""Time every path of the depthwise convolution on this machine, and say where the rule picked another than the fastest.

The paths of one direction are timed in turn, round after round, so that what slows the machine down slows all of them;
a figure is the least over rounds. The rule and its constants are in `ops/depthwise_rule.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fullfield.measure.environment import environment
from fullfield.measure.tables import Row, write_rows
from fullfield.ops import PATHS, depthwise_conv2d
from fullfield.ops.depthwise_rule import DIRECTIONS, fastest_path
from fullfield.ops.depthwise_shape import DepthwiseShape
from fullfield.ops.depthwise_trilinear import grad_input, grad_weight
from fullfield.ops.layout import is_channels_last

__all__ = ["DEPTHWISE_CASES", "DepthwiseBench", "DepthwiseCase", "DepthwiseRow", "bench_depthwise"]

GIVE_UP = 4  # a path so many times slower than another of its direction is called once
FEW_MS = 10  # shorter calls are made more often
TOEPLITZ_SIDE = 14  # larger matrices are never the fastest, and take long


@dataclass(frozen=True)
class DepthwiseCase:
    """Sizes of one convolution with padding that keeps the map; sides in pixels."""

    kernel: tuple[int, int]
    side: int
    stride: int = 1
    dilation: int = 1

    def __str__(self) -> str:
        words = f"{self.kernel[0]}x{self.kernel[1]} at {self.side}"
        words += f", stride {self.stride}" if self.stride > 1 else ""
        return words + (f", dilation {self.dilation}" if self.dilation > 1 else "")

    def shape(self, batch: int, channels: int) -> DepthwiseShape:
        """Return the sizes with a batch and channels."""
        padding = (self.dilation * (self.kernel[0] // 2), self.dilation * (self.kernel[1] // 2))
        map_size = (self.side, self.side)
        return DepthwiseShape(batch, channels, map_size, self.kernel, self.stride, padding, self.dilation)


# Square kernels, the strips of SLaK, downsampling, and the dilated kernels of VAN, MogaNet and UniRepLKNet.
DEPTHWISE_CASES = (
    *(DepthwiseCase((k, k), side) for k, side in [(3, 56), (3, 14), (7, 56), (7, 14), (7, 7)]),
    *(DepthwiseCase((k, k), side) for k, side in [(13, 56), (13, 28), (13, 14), (13, 7)]),
    *(DepthwiseCase((k, k), side) for k, side in [(21, 56), (21, 28), (31, 56), (31, 28), (31, 14)]),
    *(DepthwiseCase(k, side) for n, side in [(51, 56), (49, 28), (47, 14), (13, 7)] for k in [(n, 5), (5, n)]),
    *(DepthwiseCase((k, k), side, stride=2) for k, side in [(3, 56), (7, 28), (13, 28), (31, 56)]),
    *(DepthwiseCase((k, k), side, dilation=d) for k, d, side in [(7, 3, 56), (7, 3, 14), (5, 2, 28), (3, 5, 14)]),
)


@dataclass(frozen=True)
class DepthwiseRow:
    """One path of one direction, or "rule" for the operator as it is called."""

    case: DepthwiseCase
    layout: str
    """nchw or channels_last."""
    direction: str
    """forward, grad_input, grad_weight, or forward+backward."""
    path: str
    ms: float
    """Least over rounds."""
    over_native: float
    """Speed over `F.conv2d` and its gradients on the same tensors."""
    of_fastest: float
    """Speed as a share of the fastest path; 1 for that path."""
    is_chosen: bool
    """Whether the rule picks it."""


@dataclass(frozen=True)
class DepthwiseBench:
    """What `bench_depthwise` measured."""

    rows: tuple[DepthwiseRow, ...]
    batch: int
    channels: int
    environment: dict[str, str]

    def misses(self, share: float = 0.85) -> list[DepthwiseRow]:
        """Return the paths that the rule picks although they have less than this share of the fastest one's speed."""
        return [row for row in self.rows if row.is_chosen and row.path != "rule" and row.of_fastest < share]

    def to_rows(self) -> list[Row]:
        """Return plain values under the names of the CSV's columns, the environment beside each."""
        return [
            {
                "kernel_height": row.case.kernel[0],
                "kernel_width": row.case.kernel[1],
                "side": row.case.side,
                "stride": row.case.stride,
                "dilation": row.case.dilation,
                "batch": self.batch,
                "channels": self.channels,
                "layout": row.layout,
                "direction": row.direction,
                "path": row.path,
                "ms": f"{row.ms:.3f}",
                "over_native": f"{row.over_native:.2f}",
                "of_fastest": f"{row.of_fastest:.2f}",
                "is_chosen": int(row.is_chosen),
                **self.environment,
            }
            for row in self.rows
        ]

    def save(self, path: str | Path) -> Path:
        """Write the rows to a .csv or .json file (see `tables.write_rows`)."""
        return write_rows(self.to_rows(), path)

    def table(self) -> str:
        """Return lines of text: the operator over `F.conv2d`, and where another path would have been faster."""
        where = f"{self.environment['device']}, {self.environment['threads']} threads"
        lines = [
            f"depthwise_conv2d over F.conv2d, batch {self.batch}, {self.channels} channels, {where}",
            f"{'kernel and map':27} {'layout':13} {'forward ms':>10} {'speed':>7} {'+ backward ms':>13} {'speed':>7}",
        ]
        whole = {(row.case, row.layout, row.direction): row for row in self.rows if row.path == "rule"}
        for case, layout in dict.fromkeys((row.case, row.layout) for row in self.rows):
            forward, both = whole[case, layout, "forward"], whole[case, layout, "forward+backward"]
            lines.append(
                f"{case!s:27} {layout:13} {forward.ms:10.2f} {forward.over_native:6.1f}x {both.ms:13.2f} "
                f"{both.over_native:6.1f}x"
            )
        fastest = {(r.case, r.layout, r.direction): r.path for r in self.rows if r.of_fastest == 1}
        for miss in self.misses():
            better = fastest[miss.case, miss.layout, miss.direction]
            lines.append(
                f"{miss.case}, {miss.layout}, {miss.direction}: the rule picks {miss.path}, "
                f"{better} is {1 / miss.of_fastest:.1f} times as fast here"
            )
        return "\n".join(lines)


def bench_depthwise(
    cases: Sequence[DepthwiseCase] = DEPTHWISE_CASES,
    *,
    batch: int = 8,
    channels: int = 128,
    layouts: Sequence[str] = ("nchw", "channels_last"),
    rounds: int = 5,
    on_progress: Callable[[str, float], None] | None = None,
) -> DepthwiseBench:
    """Time every path in every direction, and the operator as a whole, in float32 on the CPU.

    Args:
        cases: Kernels and maps.
        batch: B.
        channels: C.
        layouts: nchw, channels_last.
        rounds: Calls of each path; the least counts.
        on_progress: Told what is timed next and the share that is done.

    Returns:
        Rows for each case, layout, direction and path. All cases take minutes, because PyTorch's own path does.
    """
    rows: list[DepthwiseRow] = []
    work = [(case, layout) for case in cases for layout in layouts]
    for done, (case, layout) in enumerate(work):
        if on_progress is not None:
            on_progress(f"{case}, {layout}", done / len(work))
        rows += _measure(case, layout, case.shape(batch, channels), rounds)
    return DepthwiseBench(tuple(rows), batch, channels, environment())


def _measure(case: DepthwiseCase, layout: str, shape: DepthwiseShape, rounds: int) -> Iterator[DepthwiseRow]:
    memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x = torch.randn(shape.batch, shape.channels, *shape.map_size).contiguous(memory_format=memory)
    g = torch.randn(shape.batch, shape.channels, *shape.output_size).contiguous(memory_format=memory)
    weight = torch.randn(shape.channels, 1, *shape.kernel)
    for direction, calls in _calls(x, weight, g, shape).items():
        ms = _least_ms(calls, rounds)
        chosen = "rule"
        if direction in DIRECTIONS:
            chosen = fastest_path(direction, shape.cropped(), x.dtype, is_channels_last(x))
        fastest = min(ms.values())
        for path, value in ms.items():
            is_chosen = path in (chosen, "rule")
            over_native, of_fastest = ms["native"] / value, fastest / value
            yield DepthwiseRow(case, layout, direction, path, value, over_native, of_fastest, is_chosen)


def _calls(x: Tensor, weight: Tensor, g: Tensor, shape: DepthwiseShape) -> dict[str, dict[str, Callable[[], object]]]:
    """Return direction -> path -> what to time."""
    s, padding, d = shape.stride, shape.padding, shape.dilation
    paths = [p for p in PATHS["depthwise_conv2d"] if p != "toeplitz" or max(shape.map_size) <= TOEPLITZ_SIDE]
    x_grad, weight_grad = x.clone().requires_grad_(), weight.clone().requires_grad_()

    @torch.no_grad()
    def operator(path: str | None) -> Tensor:
        return depthwise_conv2d(x, weight, stride=s, padding=padding, dilation=d, path=path)

    def both(path: str | None) -> tuple[Tensor, ...]:
        y = depthwise_conv2d(x_grad, weight_grad, stride=s, padding=padding, dilation=d, path=path)
        return torch.autograd.grad(y, (x_grad, weight_grad), g)

    whole: dict[str, str | None] = {"native": "native", "rule": None}
    forward = {"native": "native", "rule": None} | {path: path for path in paths}

    def of_input(path: str) -> Tensor:
        dx: Tensor = grad_input(g, weight, shape.map_size, is_channels_last(x), s, padding, d, path)
        return dx

    def of_weight(path: str) -> Tensor:
        dw: Tensor = grad_weight(x, g, shape.kernel, s, padding, d, path)
        return dw

    return {
        "forward": {name: partial(operator, path) for name, path in forward.items()},
        "grad_input": {path: partial(of_input, path) for path in paths},
        "grad_weight": {path: partial(of_weight, path) for path in paths},
        "forward+backward": {name: partial(both, path) for name, path in whole.items()},
    }


def _least_ms(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the least milliseconds of each call; the first round only shows which are not worth another."""
    first = {name: _ms(call) for name, call in calls.items()}
    first |= {name: min(first[name], _ms(call)) for name, call in calls.items() if first[name] < FEW_MS}
    fastest = min(first.values())
    worth = [name for name in calls if first[name] < GIVE_UP * fastest]
    least = first | dict.fromkeys(worth, float("inf"))
    for _ in range(rounds * max(1, int(FEW_MS / fastest))):
        for name in worth:
            least[name] = min(least[name], _ms(calls[name]))
    return least


def _ms(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3
