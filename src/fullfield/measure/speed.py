"""Latency, throughput and peak memory of backbones here, side by side.

All candidates of one mode and batch size (models, layouts, precisions, backends, fused or not) are timed in turn, see
`timing`. A model's ratio to a peer is between the fastest candidates of the two in the same precision: it answers
"which should I run", and not "which is faster in a layout that neither would use".
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from fullfield.errors import ConfigError
from fullfield.measure.cost import Cost
from fullfield.measure.cost_report import CostReport, cost_report
from fullfield.measure.environment import environment
from fullfield.measure.memory import peak_memory_mb
from fullfield.measure.roofline import Machine, bound_ms, machine
from fullfield.measure.runners import RUNTIMES, Setting, fused_copy, make_call, open_named, reason_of
from fullfield.measure.tables import Row, rows_to_dataframe, write_rows
from fullfield.measure.timing import Ratio, Samples, ratio, time_interleaved

__all__ = ["Bench", "SpeedRow", "bench", "count", "prepare", "setting_words"]


@dataclass(frozen=True)
class SpeedRow:
    """One model in one setting."""

    model: str
    setting: Setting
    samples: Samples
    """Seconds a call."""
    peak_memory_mb: float | None
    """Rise of the memory in use during one call, MB; None where it cannot be measured."""
    cost: Cost
    """Parameters and MACs of one image, in the form that runs (fused or not)."""
    ratio: Ratio | None = None
    """Speed over the peer's fastest candidate in the same mode, batch size and precision; None without a peer."""
    bound_ms: float | None = None
    """Least latency by the roofline; None for training, or where the machine was not measured in this precision."""

    @property
    def images_per_s(self) -> float:
        """Throughput, from the median latency."""
        return self.setting.batch / self.samples.median_s

    @property
    def roofline_fraction(self) -> float | None:
        """Share of the roofline reached: bound / median latency."""
        return None if self.bound_ms is None else self.bound_ms / (1e3 * self.samples.median_s)

    def to_row(self) -> Row:
        """Return plain values under the names of the CSV's columns."""
        s = self.setting
        height, width = s.image_size
        return {
            "model": self.model,
            "mode": s.mode,
            "batch": s.batch,
            "height": height,
            "width": width,
            "layout": s.layout,
            "precision": s.precision,
            "backend": s.backend,
            "fused": s.fused,
            "images_per_s": round(self.images_per_s, 3),
            **{f"p{p}_ms": round(self.samples.percentile_ms(p), 4) for p in (50, 90, 99)},
            "rounds": len(self.samples.seconds),
            "peak_memory_mb": None if self.peak_memory_mb is None else round(self.peak_memory_mb, 1),
            "params": self.cost.params,
            "macs": self.cost.macs,
            "flops": self.cost.flops,
            "gmacs_per_s": round(self.cost.macs * self.images_per_s / 1e9, 2),
            "bound_ms": None if self.bound_ms is None else round(self.bound_ms, 4),
            "roofline_fraction": None if self.roofline_fraction is None else round(self.roofline_fraction, 4),
            "ratio": None if self.ratio is None else round(self.ratio.median, 4),
            "ratio_p10": None if self.ratio is None else round(self.ratio.low, 4),
            "ratio_p90": None if self.ratio is None else round(self.ratio.high, 4),
        }


@dataclass(frozen=True)
class Bench:
    """What `bench` measured."""

    rows: tuple[SpeedRow, ...]
    peer: str | None
    """The model that ratios are taken to."""
    environment: dict[str, str]

    def fastest(self, model: str, mode: str, batch: int, precision: str = "float32") -> SpeedRow:
        """Return a model's fastest row in a mode, batch size and precision.

        Raises:
            ConfigError: There is none.
        """
        rows = [
            row
            for row in self.rows
            if (row.model, row.setting.mode, row.setting.batch, row.setting.precision)
            == (model, mode, batch, precision)
        ]
        if not rows:
            raise ConfigError(f"{model} was not timed in mode {mode}, batch {batch}, {precision}")
        return min(rows, key=lambda row: row.samples.median_s)

    def to_rows(self) -> list[Row]:
        """Return plain rows, the environment in every one."""
        return [row.to_row() | {"peer": self.peer} | self.environment for row in self.rows]

    def to_dataframe(self) -> Any:
        """Return the rows as a pandas data frame."""
        return rows_to_dataframe(self.to_rows())

    def save(self, path: str | Path) -> Path:
        """Write the rows to a .csv or .json file; see `tables.write_rows`."""
        return write_rows(self.to_rows(), path)

    def plot(self, path: str | Path) -> Path:
        """Draw throughput over batch size, one panel a mode, to a .png or .svg file; see `speed_plot`."""
        from fullfield.measure.speed_plot import plot_bench

        return plot_bench(self, path)


def bench(
    models: str | nn.Module | Sequence[str] | Mapping[str, nn.Module],
    *,
    vs: str | None = None,
    batch_sizes: Sequence[int] = (1, 8),
    modes: Sequence[str] = ("forward",),
    layouts: Sequence[str] = ("nchw", "channels_last"),
    precisions: Sequence[str] = ("float32",),
    backends: Sequence[str] = ("eager",),
    fused: bool = False,
    image_size: int | tuple[int, int] | None = None,
    seconds: float = 10.0,
    min_rounds: int = 5,
    memory: bool = True,
    roofline: bool = False,
    device: str = "cpu",
    on_progress: Callable[[str, float], None] | None = None,
) -> Bench:
    """Time models against each other here (`fullfield bench MODEL... --vs PEER`).

    Args:
        models: What `runners.open_named` opens, a module, or label -> module (B, C, H, W) -> anything.
        vs: A label among `models`, or what `runners.open_named` opens: the peer of all ratios. None for the first
            model if there are several.
        batch_sizes: Images a call.
        modes: "forward", "train".
        layouts: "nchw", "channels_last".
        precisions: "float32", "bf16", "fp16".
        backends: "eager", "compile", "onnxruntime", "openvino".
        fused: Also time the models that can be fused in fused form, forward.
        image_size: Pixels; None for each model's own.
        seconds: Time for each mode and batch size, all candidates together, warm-up not counted.
        min_rounds: At least so many samples a candidate, whatever that takes.
        memory: Measure peak memory too (one more call each).
        roofline: Measure the machine first (seconds, see `roofline.machine`), for the `bound_ms` of forward rows.
        device: Where to run.
        on_progress: Told what is being done and the share done, 0 to 1.

    Raises:
        ModelNotFoundError: No model has that name.
        ConfigError: A setting does not exist or is impossible, or nothing is left to time.
        MissingExtraError: A backend's library is not installed.
    """
    named = _named(models, image_size)
    peer = vs if vs is not None else (next(iter(named)) if len(named) > 1 else None)
    if peer is not None and peer not in named:
        named[peer] = open_named(peer, image_size)
    forms = {name: _forms(name, model, image_size, fused) for name, model in named.items()}
    sizes = {name: reports[False].cost.input_size[1:] for name, reports in forms.items()}
    groups = []
    for mode, batch in itertools.product(modes, batch_sizes):
        settings = [
            (name, setting)
            for name, reports in forms.items()
            for setting in dict.fromkeys(
                _settings(reports, sizes[name], mode, batch, layouts, precisions, backends, device)
            )
        ]
        if not settings:
            raise ConfigError(f"no candidate runs {mode}, batch {batch}; {', '.join(RUNTIMES)} only run forward")
        groups.append(settings)
    if not groups:
        raise ConfigError("nothing to time: give at least one mode and one batch size")
    on = None
    if roofline and "forward" in modes:
        if on_progress is not None:
            on_progress("measuring this machine", 0.0)
        on = machine(device)
    rows: list[SpeedRow] = []
    for number, settings in enumerate(groups):

        def report(text: str, share: float, done: int = number) -> None:
            if on_progress is not None:
                on_progress(text, (done + share) / len(groups))

        timed = _time_group(named, forms, settings, seconds, min_rounds, memory, report)
        rows += [_with_ratio(_with_bound(row, forms[row.model], on), timed, peer) for row in timed]
    return Bench(tuple(rows), peer, environment(device))


def _named(
    models: str | nn.Module | Sequence[str] | Mapping[str, nn.Module], image_size: int | tuple[int, int] | None
) -> dict[str, nn.Module]:
    if isinstance(models, nn.Module):
        return {type(models).__name__: models}
    if isinstance(models, Mapping):
        return dict(models)
    return {name: open_named(name, image_size) for name in ([models] if isinstance(models, str) else models)}


def _forms(
    name: str, model: nn.Module, image_size: int | tuple[int, int] | None, fused: bool
) -> dict[bool, CostReport]:
    """Return what a model costs as it is (False) and, if that is asked for and possible, fused (True)."""
    forms = {False: model}
    if fused and callable(getattr(model, "fuse", None)):
        forms[True] = fused_copy(model)
    return {is_fused: count(name, form, image_size) for is_fused, form in forms.items()}


def count(name: str, model: nn.Module, image_size: int | tuple[int, int] | None) -> CostReport:
    """Return what a model costs, under a name.

    Args:
        name: For the report and for errors.
        model: In the form that runs.
        image_size: Pixels; None for the model's own.

    Raises:
        ConfigError: The model can't run at that size.
    """
    try:
        report = cost_report(model, image_size=image_size)
    except (RuntimeError, ValueError, AssertionError) as error:
        size = "its own size" if image_size is None else f"{image_size} pixels"
        raise ConfigError(f"{name} can't run at {size}: {reason_of(error)}. Try another image size") from error
    return replace(report, cost=replace(report.cost, name=name))


def _settings(
    forms: Iterable[bool],
    image_size: tuple[int, int],
    mode: str,
    batch: int,
    layouts: Iterable[str],
    precisions: Iterable[str],
    backends: Iterable[str],
    device: str,
) -> list[Setting]:
    """Return the settings of one model in one mode and batch size; the runtimes choose their layout by themselves."""
    found = []
    for backend, fused in itertools.product(backends, forms):
        if mode == "train" and (fused or backend in RUNTIMES):
            continue
        if backend in RUNTIMES:
            found.append(Setting(mode, batch, image_size, "nchw", "float32", backend, fused, device))
            continue
        for layout, precision in itertools.product(layouts, precisions):
            found.append(Setting(mode, batch, image_size, layout, precision, backend, fused, device))
    return found


def _time_group(
    models: Mapping[str, nn.Module],
    forms: Mapping[str, Mapping[bool, CostReport]],
    settings: Sequence[tuple[str, Setting]],
    seconds: float,
    min_rounds: int,
    memory: bool,
    report: Callable[[str, float], None],
) -> list[SpeedRow]:
    label = f"{settings[0][1].mode}, batch {settings[0][1].batch}"
    calls, peaks = {}, {}
    for number, (name, setting) in enumerate(settings):
        report(f"{label}: preparing {name}", 0.2 * number / len(settings))
        key = repr((name, setting))
        calls[key] = prepare(models[name], setting, name, forms[name][False].cost.input_size[0])
        if memory:
            peaks[key] = peak_memory_mb(calls[key], setting.device)
    samples = time_interleaved(
        calls,
        seconds=seconds,
        min_rounds=min_rounds,
        on_round=lambda done: report(f"{label}: round {done}", 0.2 + 0.8 * min(1.0, done / max(min_rounds, 30))),
    )
    return [
        SpeedRow(name, setting, taken, peaks.get(key), forms[name][setting.fused].cost)
        for (name, setting), (key, taken) in zip(settings, samples.items(), strict=True)
    ]


def prepare(model: nn.Module, setting: Setting, name: str, channels: int) -> Callable[[], Any]:
    """Make a call as `make_call` does and run it once, so that what can't run costs no measurement.

    Args:
        model: Left as it was.
        setting: How to run it.
        name: For errors.
        channels: Of an image.

    Raises:
        ConfigError: It can't run.
        MissingExtraError: The backend's library is not installed.
    """
    try:
        call = make_call(model, setting, channels)
        call()
    except ConfigError:
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"{name} can't run {setting.mode} on {setting.batch} × {setting.image_size[0]}×{setting.image_size[1]},"
            f" {setting_words(setting)}: {reason_of(error)}. Try another batch size, image size or setting"
        ) from error
    return call


def _with_bound(row: SpeedRow, forms: Mapping[bool, CostReport], on: Machine | None) -> SpeedRow:
    setting = row.setting
    if on is None or setting.mode != "forward" or setting.precision not in on.flops_per_s:
        return row
    report = forms[setting.fused]
    return replace(row, bound_ms=bound_ms(report, on, batch=setting.batch, precision=setting.precision))


def _with_ratio(row: SpeedRow, rows: Sequence[SpeedRow], peer: str | None) -> SpeedRow:
    rivals = [r for r in rows if r.model == peer and r.setting.precision == row.setting.precision]
    if not rivals:
        return row
    fastest = min(rivals, key=lambda rival: rival.samples.median_s)
    return replace(row, ratio=ratio(row.samples, fastest.samples))


def setting_words(setting: Setting) -> str:
    """Return what is special about a setting in a few words, for tables."""
    entries = asdict(setting)
    words = [entries["layout"], entries["precision"]]
    if setting.backend != "eager":
        words.append(setting.backend)
    if setting.fused:
        words.append("fused")
    return " ".join(words)
