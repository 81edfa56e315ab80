"""Parameters, MACs and time of a model by stage, cut where its feature maps are taken.

A stage ends with its feature layer (`feature_maps.stage_layers`) and begins where the stage before it ended, so the
first one holds the stem too; what comes after the last is the head. Modules belong to the stage in which they are
defined, which is the order in which they run in every net that we list.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fullfield.measure.breakdown import time_by_module
from fullfield.measure.cost_report import CostReport
from fullfield.measure.runners import Setting

__all__ = ["StageCost", "chosen_stages", "cost_of_stages", "time_stages"]

SHOWN = 4


@dataclass(frozen=True)
class StageCost:
    """The cost of one stage for one image."""

    name: str
    """"stage 1", ..., "head"."""
    layer: str
    """The layer that ends it; "" for the head."""
    params: int
    macs: int
    ms: float | None = None
    """Median time in one call with hooks on all modules, which cost time themselves; None if it was not measured."""

    def to_row(self) -> dict[str, Any]:
        """Return plain values under the names of the CSV's columns."""
        ms = None if self.ms is None else round(self.ms, 4)
        return {"layer": self.layer, "params": self.params, "macs": self.macs, "stage_ms": ms}


def chosen_stages(layers: list[str], count: int = SHOWN) -> list[str]:
    """Return at most `count` of a model's stage layers, the last among them.

    Of five (a stem's map before four stages, as in ResNet) the last four; of more, as in a ViT where every block is a
    stage, as many at equal distances.

    Args:
        layers: In order.
        count: At most so many.
    """
    if len(layers) <= count + 1:
        return layers[-count:]
    return [layers[(i + 1) * len(layers) // count - 1] for i in range(count)]


def cost_of_stages(report: CostReport, layers: list[str]) -> tuple[StageCost, ...]:
    """Sum a cost report by stage.

    Args:
        report: Of the model.
        layers: Layers that end its stages, in order.

    Returns:
        One entry a stage, and one for the head; together they are the whole model.
    """
    stage = _stage_of([module.name for module in report.modules], layers)
    params, flops = [0] * (len(layers) + 1), [0] * (len(layers) + 1)
    for module in report.modules:
        params[stage[module.name]] += module.params
    for op in report.operators:
        flops[stage[op.module]] += op.flops
    names = [*(f"stage {number}" for number in range(1, len(layers) + 1)), "head"]
    ends = [*layers, ""]
    return tuple(StageCost(n, e, p, f // 2) for n, e, p, f in zip(names, ends, params, flops, strict=True))


def time_stages(model: nn.Module, stages: tuple[StageCost, ...], setting: Setting, calls: int) -> tuple[StageCost, ...]:
    """Return the stages with the time of each.

    Args:
        model: Of `stages`.
        stages: As `cost_of_stages` returns them.
        setting: How to run the model.
        calls: Calls to take the median of.

    Raises:
        ConfigError: The setting is impossible.
    """
    layers = [stage.layer for stage in stages if stage.layer]
    stage = _stage_of([name for name, _ in model.named_modules()], layers)
    depth = max((len(layer.split(".")) for layer in layers), default=1)
    ms = [0.0] * len(stages)
    for row in time_by_module(model, setting, depth=depth, calls=calls).rows:
        ms[stage.get(row.name, len(layers))] += row.ms
    return tuple(replace(one, ms=time) for one, time in zip(stages, ms, strict=True))


def _stage_of(names: list[str], layers: list[str]) -> dict[str, int]:
    """Return module -> index of its stage, from the order in which the modules are defined.

    A module that holds layers of several stages (`stages`, or the model itself) has what it does on its own counted
    in the first of them; the model's own goes to the head, where pooling and flattening are.
    """
    bare = [layer.partition("[")[0] for layer in layers]
    found: dict[str, int] = {}
    index = 0
    for name in names:
        while index < len(bare) and bare[index] in found and not f"{name}.".startswith(f"{bare[index]}."):
            index += 1
        found[name] = index
    found[""] = len(layers)
    return found
