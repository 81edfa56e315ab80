"""Where the time of a model goes: per operator (PyTorch's profiler) and per module (hooks), beside the roofline bound.

Profiler and hooks cost time themselves, most where operators are short, so the totals here are for shares and
`speed.py` is for latency. Measuring per module on a GPU waits for the device at the end of every module.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from fullfield.errors import ConfigError, MissingExtraError
from fullfield.files import atomic_write
from fullfield.measure.cost import input_size
from fullfield.measure.cost_report import ancestor, cost_report
from fullfield.measure.environment import environment
from fullfield.measure.roofline import Machine, operators_bound_ms
from fullfield.measure.runners import Setting, fused_copy, make_call, open_named
from fullfield.measure.tables import Row, rows_to_dataframe, write_rows

__all__ = ["Breakdown", "TimeRow", "time_by_kind", "time_by_module", "time_by_operator"]

WARM_UP = 2
_OWN_OPERATORS = {"_BlockedMix": "attention", "_BlockedMixBackward": "attention"}  # autograd functions of `ops.blocked`
_KINDS = {
    "conv": "convolution",
    "linear": "matrix product",
    "mm": "matrix product",
    "matmul": "matrix product",
    "attention": "attention",
    "fft": "FFT",
    "softmax": "softmax",
}


@dataclass(frozen=True)
class TimeRow:
    """The time of one operator, kind or module in one call."""

    name: str
    """Of the operator ("aten::conv2d"), the kind ("depthwise convolution") or the module ("stages.0")."""
    kind: str
    """Kind of operator as in `cost_trace.KINDS`, or the module's class."""
    ms: float
    """Milliseconds a call: the mean over calls of operators and kinds, the median of modules."""
    calls: float
    """How often it runs in one call."""
    bound_ms: float | None = None
    """Least time by the roofline; None without a machine, or where nothing is counted."""

    @property
    def roofline_fraction(self) -> float | None:
        """Share of the roofline reached: bound / time; above 1 where maps stay in the cache."""
        return self.bound_ms / self.ms if self.bound_ms is not None and self.ms > 0 else None


@dataclass(frozen=True)
class Breakdown:
    """What one of the functions below measured; the rows' times add up to the whole, longest first."""

    model: str
    by: str
    """"operator", "kind" or "module"."""
    rows: tuple[TimeRow, ...]
    setting: Setting
    environment: dict[str, str]

    @property
    def total_ms(self) -> float:
        """Milliseconds of all rows together."""
        return sum(row.ms for row in self.rows)

    def to_rows(self) -> list[Row]:
        """Return plain rows, the setting and environment in every one."""
        height, width = self.setting.image_size
        whole = {
            "model": self.model,
            "by": self.by,
            "mode": self.setting.mode,
            "batch": self.setting.batch,
            "height": height,
            "width": width,
            "layout": self.setting.layout,
            "precision": self.setting.precision,
            "fused": self.setting.fused,
        }
        total = self.total_ms
        return [
            whole
            | {
                "name": row.name,
                "kind": row.kind,
                "calls": round(row.calls, 3),
                "ms": round(row.ms, 4),
                "share": round(row.ms / total, 4) if total else 0.0,
                "bound_ms": None if row.bound_ms is None else round(row.bound_ms, 4),
                "roofline_fraction": None if row.roofline_fraction is None else round(row.roofline_fraction, 4),
            }
            | self.environment
            for row in self.rows
        ]

    def to_dataframe(self) -> Any:
        """Return the rows as a pandas data frame."""
        return rows_to_dataframe(self.to_rows())

    def save(self, path: str | Path) -> Path:
        """Write the rows to a .csv or .json file; see `tables.write_rows`."""
        return write_rows(self.to_rows(), path)

    def plot(self, path: str | Path) -> Path:
        """Draw the times as bars, with the roofline bounds in them, to a .png, .svg or .pdf file.

        Raises:
            MissingExtraError: matplotlib is not installed.
            RunError: The file can't be written.
        """
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError as error:
            raise MissingExtraError("drawing needs matplotlib: pip install 'fullfield[look]'") from error
        path = Path(path)
        rows = self.rows[:25][::-1]  # the longest on top; what comes after could not be seen
        names = [row.name or "(itself)" for row in rows]
        figure = Figure(figsize=(7.2, 1.4 + 0.28 * len(rows)), layout="constrained")
        panel = figure.subplots()
        panel.barh(names, [row.ms for row in rows], color="#9ecae1", label="measured")
        if any(row.bound_ms is not None for row in rows):
            panel.barh(names, [row.bound_ms or 0 for row in rows], height=0.3, color="#08519c", label="roofline bound")
            panel.legend(frameon=False, fontsize=8)
        s, env = self.setting, self.environment
        panel.set(xlabel="ms a call", title=f"{self.model}, {s.mode}, batch {s.batch}, {s.layout}, {s.precision}")
        panel.spines[["top", "right"]].set_visible(False)
        figure.suptitle(f"{env['device']}, {env['threads']} threads, torch {env['torch']}", fontsize=8, color="#666666")
        with atomic_write(path) as partial:
            figure.savefig(partial, format=path.suffix.lstrip(".") or "png", dpi=150)
        return path


def time_by_operator(model: str | nn.Module, setting: Setting | None = None, *, calls: int = 5) -> Breakdown:
    """Time the operators that a model calls; what an operator calls within is in its time.

    Args:
        model: What `runners.open_named` opens, or a module (B, C, H, W) -> anything, which is left as it was.
        setting: How to run it, in eager mode; None for one image of the model's own size, forward. Backward operators
            of a training step are named by PyTorch ("aten::convolution_backward").
        calls: Calls to average over.

    Raises:
        ModelNotFoundError: No model has that name.
        ConfigError: The setting's backend is not "eager", or `calls` is not positive.
    """
    name, module = _named(model)
    setting = _checked(module, setting, calls)
    rows = _profile(module, setting, calls)
    return _breakdown(name, "operator", rows, setting)


def time_by_kind(
    model: str | nn.Module, setting: Setting | None = None, *, calls: int = 5, on: Machine | None = None
) -> Breakdown:
    """Time the kinds of operators (`cost_trace.KINDS`), with the roofline bounds of a forward pass.

    A product that no operator of PyTorch's or ours names as attention is a matrix product here, while `cost_report`
    finds the softmax between two products; its bound is then that of matrix products.

    Args:
        model: As in `time_by_operator`, like `setting` and `calls`.
        setting: How to run it.
        calls: Calls to average over.
        on: The machine that gives the bounds, see `roofline.machine`; None for none.

    Raises:
        ModelNotFoundError: No model has that name.
        ConfigError: As in `time_by_operator`.
    """
    name, module = _named(model)
    setting = _checked(module, setting, calls)
    merged: dict[str, TimeRow] = {}
    for row in _profile(module, setting, calls):
        old = merged.get(row.kind, TimeRow(row.kind, row.kind, 0.0, 0.0))
        merged[row.kind] = replace(old, ms=old.ms + row.ms, calls=old.calls + row.calls)
    if on is not None and setting.mode == "forward":
        report = cost_report(_form(module, setting), image_size=setting.image_size)
        for group in report.by_operator():
            kind = group.name if group.name in merged or group.name != "attention" else "matrix product"
            bound = operators_bound_ms(
                group.operators, on, report.element_bytes, batch=setting.batch, precision=setting.precision
            )
            if bound and kind in merged:
                merged[kind] = replace(merged[kind], bound_ms=bound + (merged[kind].bound_ms or 0.0))
    return _breakdown(name, "kind", list(merged.values()), setting)


def time_by_module(
    model: str | nn.Module,
    setting: Setting | None = None,
    *,
    depth: int = 2,
    calls: int = 10,
    on: Machine | None = None,
) -> Breakdown:
    """Time the modules of a forward pass, with their roofline bounds.

    Args:
        model: As in `time_by_operator`.
        setting: How to run it, forward in eager mode; None for one image of the model's own size.
        depth: Names in a module's path, see `CostReport.by_module`. A module above that depth has a row of its own for
            what it does outside its submodules.
        calls: Calls to take the median over.
        on: The machine that gives the bounds, see `roofline.machine`; None for none.

    Raises:
        ModelNotFoundError: No model has that name.
        ConfigError: The setting is not forward in eager mode, or `depth` is negative, or `calls` not positive.
    """
    name, module = _named(model)
    setting = _checked(module, setting, calls)
    if setting.mode != "forward":
        raise ConfigError("modules are timed forward only; time_by_operator has the operators of a training step")
    if depth < 0:
        raise ConfigError(f"depth must be at least 0, got {depth}")
    module = _form(module, setting)
    clock = _ModuleClock(setting.device)
    with clock.hooked(module, depth):
        call = make_call(module, replace(setting, fused=False), input_size(module)[0])  # a copy, hooks included
    samples = [clock.run(call) for _ in range(WARM_UP + calls)][WARM_UP:]
    bounds: dict[str, float] = {}
    if on is not None:
        report = cost_report(module, image_size=setting.image_size)
        bounds = {
            group.name: operators_bound_ms(
                group.operators, on, report.element_bytes, batch=setting.batch, precision=setting.precision
            )
            for group in report.by_module(depth)
        }
    types = {path: type(part).__name__ for path, part in module.named_modules()}
    rows = [
        TimeRow(
            path,
            types[path],
            1e3 * float(np.median([seconds.get(path, 0.0) for seconds, _ in samples])),
            count,
            bounds.get(path) or None,
        )
        for path, count in samples[0][1].items()
    ]
    return _breakdown(name, "module", rows, setting)


def _named(model: str | nn.Module) -> tuple[str, nn.Module]:
    return (model, open_named(model)) if isinstance(model, str) else (type(model).__name__, model)


def _form(model: nn.Module, setting: Setting) -> nn.Module:
    """Return the model in the form that runs."""
    return fused_copy(model) if setting.fused else model


def _checked(model: nn.Module, setting: Setting | None, calls: int) -> Setting:
    if setting is None:
        _, height, width = input_size(model)
        setting = Setting(image_size=(height, width))
    if setting.backend != "eager":
        raise ConfigError(f"{setting.backend} has no modules or operators to time one by one: use backend='eager'")
    if calls < 1:
        raise ConfigError(f"calls must be at least 1, got {calls}")
    return setting


def _breakdown(name: str, by: str, rows: Sequence[TimeRow], setting: Setting) -> Breakdown:
    ordered = tuple(sorted(rows, key=lambda row: -row.ms))
    return Breakdown(name, by, ordered, setting, environment(setting.device))


class _ModuleClock:
    """Gives the time that passes to the module that is running, by its first names."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._stack: list[str] = []
        self._seconds: dict[str, float] = {}
        self._count: dict[str, int] = {}
        self._last = 0.0

    def run(self, call: Callable[[], Any]) -> tuple[dict[str, float], dict[str, int]]:
        """Return the seconds and the number of runs of every module in one call."""
        self._stack, self._seconds, self._count = [""], {}, {"": 1}
        self._tick(charge=False)
        call()
        self._tick()
        return self._seconds, self._count

    @contextmanager
    def hooked(self, model: nn.Module, depth: int) -> Iterator[None]:
        """Hook the modules down to a depth; a deep copy made meanwhile keeps the hooks."""

        def enter(name: str) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                self._tick()
                self._stack.append(name)
                self._count[name] = self._count.get(name, 0) + 1

            return hook

        def leave(*_: Any) -> None:
            self._tick()
            self._stack.pop()

        handles = []
        for name, module in model.named_modules():
            if name and ancestor(name, depth) == name:
                handles.append(module.register_forward_pre_hook(enter(name), prepend=True))
                handles.append(module.register_forward_hook(leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _tick(self, charge: bool = True) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()
        now = time.perf_counter()
        if charge:
            self._seconds[self._stack[-1]] = self._seconds.get(self._stack[-1], 0.0) + now - self._last
        self._last = now


def _profile(model: nn.Module, setting: Setting, calls: int) -> list[TimeRow]:
    call = make_call(model, setting, input_size(model)[0])
    for _ in range(WARM_UP):
        call()
    cuda = torch.device(setting.device).type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities, record_shapes=True, acc_events=True) as profiler:
        for _ in range(calls):
            call()
    rows: dict[tuple[str, str], TimeRow] = {}
    for event in profiler.events():
        micros = event.self_device_time_total if cuda else event.self_cpu_time_total
        outermost = _outermost(event)
        if outermost is None:
            continue
        name, kind = outermost.name, _kind(outermost)
        old = rows.get((name, kind), TimeRow(name, kind, 0.0, 0.0))
        ran = 1 / calls if event is outermost else 0.0
        rows[name, kind] = replace(old, ms=old.ms + micros / 1e3 / calls, calls=old.calls + ran)
    return list(rows.values())


def _outermost(event: Any) -> Any:
    """Return the operator called from Python (or by autograd) within which an event ran; None outside of any."""
    found = None
    while event is not None:
        if event.name.startswith(("aten::", "fullfield::")) or event.name in _OWN_OPERATORS:
            found = event
        event = event.cpu_parent
    return found


def _kind(event: Any) -> str:
    """Return the kind of a profiled operator, a convolution's by the shapes of its input and weight."""
    if event.name in _OWN_OPERATORS:
        return _OWN_OPERATORS[event.name]
    if "depthwise" in event.name:
        return "depthwise convolution"
    kind = next((kind for part, kind in _KINDS.items() if part in event.name), "other")
    if kind == "convolution":
        maps = [shape for shape in event.input_shapes if len(shape) == 4]
        x, weight = maps[-2:] if len(maps) > 1 else ([], [])  # of a gradient: (output's gradient, input, weight)
        return "depthwise convolution" if weight and weight[1] == 1 < x[1] else kind
    return kind
