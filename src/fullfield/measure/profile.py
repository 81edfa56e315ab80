"""One model taken apart (`fullfield bench MODEL --cost --breakdown`): counts, times and roofline bounds side by side.

Counts are of one image, from `cost_report.py`; times and bounds are of one call of the setting's batch. The latency of
the whole is measured without profiler or hooks; the times of kinds and modules come with them (see `breakdown.py`), so
theirs add up to somewhat more.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fullfield.measure.breakdown import Breakdown, time_by_kind, time_by_module
from fullfield.measure.cost import input_size
from fullfield.measure.cost_report import CostGroup, CostReport
from fullfield.measure.cost_training import TrainingMemory, training_memory
from fullfield.measure.roofline import Machine, machine, operators_bound_ms
from fullfield.measure.runners import Setting, fused_copy, open_named
from fullfield.measure.speed import count, prepare
from fullfield.measure.tables import Row, rows_to_dataframe, write_rows
from fullfield.measure.timing import Samples, time_interleaved

__all__ = ["Profile", "ProfileRow", "profile"]


@dataclass(frozen=True)
class ProfileRow:
    """The whole model, a kind of operator or a module."""

    part: str
    """"total", "operator" or "module"."""
    group: CostGroup
    """Counts of one image in inference."""
    ms: float | None
    """Milliseconds of one call; None where the profiler names the kind otherwise, or a training step the module."""
    bound_ms: float | None
    """Least milliseconds by the roofline; None for a training step or a precision that was not measured."""

    @property
    def roofline_fraction(self) -> float | None:
        """Share of the roofline reached: bound / time."""
        return self.bound_ms / self.ms if self.bound_ms is not None and self.ms else None


@dataclass(frozen=True)
class Profile:
    """What `profile` counted and measured."""

    name: str
    setting: Setting
    report: CostReport
    memory: TrainingMemory
    """Of a training step of the setting's batch, at least two images, with AdamW."""
    machine: Machine
    """Where the bounds come from."""
    latency: Samples
    """Of a whole call."""
    kinds: Breakdown
    """Time of every kind of operator, also of what has no count."""
    modules: Breakdown | None
    """Time of every module down to `depth`; None for a training step."""
    rows: tuple[ProfileRow, ...]
    """The total, then the kinds of operators, then the modules."""

    def to_rows(self) -> list[Row]:
        """Return plain rows: counts of one image, times of one call, setting, machine and environment in every one."""
        s, flops = self.setting, self.report.cost.flops
        height, width = s.image_size
        how: Row = {
            "mode": s.mode,
            "batch": s.batch,
            "height": height,
            "width": width,
            "layout": s.layout,
            "precision": s.precision,
            "fused": s.fused,
        }
        of_total: Row = {
            "missed_by_hooks": round(self.report.missed_by_hooks, 4),
            "dynamic_share": round(self.report.dynamic_share, 4),
        }
        of_total |= {f"training_{name}": value for name, value in self.memory.to_row().items() if name != "model"}
        here = self.machine.to_row() | self.kinds.environment
        return [
            {"model": self.name, "part": row.part}
            | row.group.to_row(flops)
            | {
                "ms": _rounded(row.ms),
                "bound_ms": _rounded(row.bound_ms),
                "roofline_fraction": _rounded(row.roofline_fraction),
            }
            | how
            | (of_total if row.part == "total" else {})
            | here
            for row in self.rows
        ]

    def to_dataframe(self) -> Any:
        """Return the rows as a pandas data frame."""
        return rows_to_dataframe(self.to_rows())

    def save(self, path: str | Path) -> Path:
        """Write the rows to a .csv or .json file; see `tables.write_rows`."""
        return write_rows(self.to_rows(), path)


def profile(
    model: str | nn.Module,
    *,
    mode: str = "forward",
    batch: int = 1,
    layout: str = "nchw",
    precision: str = "float32",
    fused: bool = False,
    image_size: int | tuple[int, int] | None = None,
    depth: int = 2,
    seconds: float = 2.0,
    calls: int = 5,
    device: str = "cpu",
    name: str | None = None,
    on_progress: Callable[[str, float], None] | None = None,
) -> Profile:
    """Count and time a model in eager mode, as a whole, per kind of operator and per module.

    Args:
        model: What `runners.open_named` opens, or a module (B, C, H, W) -> anything, which is left as it was.
        mode: "forward", or "train": times of a training step, counts of a forward pass, no bounds.
        batch: Images a call.
        layout: "nchw", "channels_last".
        precision: "float32", "bf16", "fp16".
        fused: Fold norms and merge branches first.
        image_size: Pixels; None for the model's own.
        depth: Names in a module's path, see `CostReport.by_module`.
        seconds: Time for the latency of the whole.
        calls: Calls with the profiler, and with hooks.
        device: Where to run.
        name: Of the model in tables; None for what it was opened by, or its class.
        on_progress: Told what is being done and the share done, 0 to 1.

    Raises:
        ModelNotFoundError: No model has that name.
        ConfigError: A setting does not exist or is impossible, `depth` is negative, or `calls` is not positive.
    """
    tell = on_progress or (lambda _text, _share: None)
    module = open_named(model, image_size) if isinstance(model, str) else model
    name = name or (model if isinstance(model, str) else type(module).__name__)
    channels, height, width = input_size(module, image_size)
    setting = Setting(mode, batch, (height, width), layout, precision, fused=fused, device=device)
    tell(f"{name}: counting", 0.0)
    report = count(name, fused_copy(module) if fused else module, (height, width))
    groups = report.by_operator(), report.by_module(depth)
    where = module if torch.device(device).type == "cpu" else copy.deepcopy(module).to(device)
    memory = replace(training_memory(where, batch=max(2, batch), image_size=(height, width)), name=name)
    tell("measuring this machine", 0.2)
    found = machine(device)
    on = found if mode == "forward" and precision in found.flops_per_s else None
    tell(f"{name}: timing", 0.4)
    latency = time_interleaved({name: prepare(module, setting, name, channels)}, seconds=seconds)[name]
    tell(f"{name}: timing operators", 0.6)
    kinds = replace(time_by_kind(module, setting, calls=calls, on=on), model=name)
    modules = None
    if mode == "forward":
        tell(f"{name}: timing modules", 0.8)
        modules = replace(time_by_module(module, setting, depth=depth, calls=calls, on=on), model=name)
    rows = [_row("total", report.total, 1e3 * latency.median_s, report, on, setting)]
    for part, members, times in (("operator", groups[0], kinds), ("module", groups[1], modules)):
        ms = {} if times is None else {row.name: row.ms for row in times.rows}
        rows += [_row(part, group, ms.get(group.name), report, on, setting) for group in members]
    return Profile(name, setting, report, memory, found, latency, kinds, modules, tuple(rows))


def _row(
    part: str, group: CostGroup, ms: float | None, report: CostReport, on: Machine | None, setting: Setting
) -> ProfileRow:
    if on is None:
        return ProfileRow(part, group, ms, None)
    bound = operators_bound_ms(
        group.operators, on, report.element_bytes, batch=setting.batch, precision=setting.precision
    )
    return ProfileRow(part, group, ms, bound or None)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
