"""Latency and throughput of several opened models, timed against each other, each at its own image size.

`speed.bench` does the same for models by name and stops at the first that cannot run; a comparison goes on without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fullfield.measure.cost import Cost
from fullfield.measure.memory import peak_memory_mb
from fullfield.measure.runners import LAYOUTS, Setting, make_call
from fullfield.measure.speed import SpeedRow
from fullfield.measure.timing import ratio, time_interleaved

__all__ = ["ToTime", "fastest_rows"]


@dataclass(frozen=True)
class ToTime:
    """One model to be timed."""

    model: nn.Module
    cost: Cost
    """Its counts; their `input_size` is that of the images."""


def fastest_rows(
    models: Mapping[str, ToTime],
    *,
    batch: int,
    seconds: float,
    min_rounds: int,
    device: str,
    layouts: Sequence[str] = tuple(LAYOUTS),
    on_failure: Callable[[str, Exception], None],
    on_progress: Callable[[str, float], None] | None = None,
) -> dict[str, SpeedRow]:
    """Time one forward pass of every model in every memory layout, all in turn, and keep each model's faster one.

    Args:
        models: Label -> model. The first is the peer of all ratios.
        batch: Images a call.
        seconds: Time for all together, warm-up not counted.
        min_rounds: Samples of each at least.
        device: Where to run.
        layouts: "nchw", "channels_last".
        on_failure: Told the label and the error of a model that does not run; the others go on.
        on_progress: Told what is being done and the share done, 0 to 1.

    Returns:
        Label -> row, without the models that do not run. The ratios are to the first that runs, and None for a single
        one.
    """
    report = on_progress or (lambda _text, _share: None)
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    settings: dict[tuple[str, str], Setting] = {}
    peaks: dict[tuple[str, str], float | None] = {}
    for number, (label, entry) in enumerate(models.items()):
        report(f"{label}: preparing {batch} images a call", 0.2 * number / len(models))
        try:
            for layout in layouts:
                key = label, layout
                channels, height, width = entry.cost.input_size
                settings[key] = Setting("forward", batch, (height, width), layout, device=device)
                call = make_call(entry.model, settings[key], channels)
                call()
                peaks[key] = peak_memory_mb(call, device)
                calls[key] = call
        except Exception as error:
            calls = {key: call for key, call in calls.items() if key[0] != label}
            on_failure(label, error)
    if not calls:
        return {}
    names = {f"{label}\n{layout}": (label, layout) for label, layout in calls}
    samples = time_interleaved(
        {name: calls[key] for name, key in names.items()},
        seconds=seconds,
        min_rounds=min_rounds,
        warm_up=1,
        on_round=lambda done: report(f"timing {batch} images a call", 0.2 + 0.8 * min(1.0, done / max(min_rounds, 30))),
    )
    found: dict[str, SpeedRow] = {}
    for name, (label, layout) in names.items():
        key = label, layout
        row = SpeedRow(label, settings[key], samples[name], peaks[key], models[label].cost)
        if label not in found or row.samples.median_s < found[label].samples.median_s:
            found[label] = row
    first = next(iter(found.values()))
    if len(found) == 1:
        return found
    return {label: replace(row, ratio=ratio(row.samples, first.samples)) for label, row in found.items()}
