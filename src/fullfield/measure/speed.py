"""Latency, throughput and peak memory of backbones here, side by side.

All candidates of one mode and batch size (models, layouts, precisions, backends, fused or not) are timed in turn, see
`timing`. A model's ratio to a peer is between the fastest candidates of the two in the same precision: it answers
"which should I run", and not "which is faster in a layout that neither would use".
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fullfield.errors import ConfigError
from fullfield.measure.cost import Cost, cost
from fullfield.measure.environment import environment
from fullfield.measure.memory import peak_memory_mb
from fullfield.measure.runners import Setting, make_call
from fullfield.measure.tables import Row, rows_to_dataframe, write_rows
from fullfield.measure.timing import Ratio, Samples, ratio, time_interleaved
from fullfield.models.registry import create_model

__all__ = ["Bench", "SpeedRow", "bench"]


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
    """Parameters and MACs of one image."""
    ratio: Ratio | None = None
    """Speed over the peer's fastest candidate in the same mode, batch size and precision; None without a peer."""

    @property
    def images_per_s(self) -> float:
        """Throughput, from the median latency."""
        return self.setting.batch / self.samples.median_s

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
    device: str = "cpu",
    on_progress: Callable[[str, float], None] | None = None,
) -> Bench:
    """Time models against each other here (`fullfield bench MODEL... --vs PEER`).

    Args:
        models: Registered names, a module, or label -> module (B, C, H, W) -> anything.
        vs: A registered name, or a label among `models`: the peer of all ratios. None for the first model if there are
            several.
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
        device: Where to run.
        on_progress: Told what is being done and the share done, 0 to 1.

    Raises:
        ModelNotFoundError: No model has that name.
        ConfigError: A setting does not exist or is impossible.
        MissingExtraError: A backend's library is not installed.
    """
    named = _named(models)
    peer = vs if vs is not None else (next(iter(named)) if len(named) > 1 else None)
    if peer is not None and peer not in named:
        named[peer] = create_model(peer)
    costs = {name: cost(model, image_size=image_size) for name, model in named.items()}
    groups = list(itertools.product(modes, batch_sizes))
    rows: list[SpeedRow] = []
    for number, (mode, batch) in enumerate(groups):

        def report(text: str, share: float, done: int = number) -> None:
            if on_progress is not None:
                on_progress(text, (done + share) / len(groups))

        settings = {
            (name, setting): setting
            for name, model in named.items()
            for setting in _settings(model, costs[name], mode, batch, layouts, precisions, backends, fused, device)
        }
        rows += _time_group(named, costs, settings, peer, seconds, min_rounds, memory, report)
    return Bench(tuple(rows), peer, environment(device))


def _named(models: str | nn.Module | Sequence[str] | Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    if isinstance(models, str):
        return {models: create_model(models)}
    if isinstance(models, nn.Module):
        return {type(models).__name__: models}
    if isinstance(models, Mapping):
        return dict(models)
    return {name: create_model(name) for name in models}


def _settings(
    model: nn.Module,
    counted: Cost,
    mode: str,
    batch: int,
    layouts: Iterable[str],
    precisions: Iterable[str],
    backends: Iterable[str],
    fused: bool,
    device: str,
) -> list[Setting]:
    """Return the settings of one model in one mode and batch size; the runtimes choose their layout by themselves."""
    forms = (False, True) if fused and mode == "forward" and callable(getattr(model, "fuse", None)) else (False,)
    size = counted.input_size[1:]
    found = []
    for backend, form in itertools.product(backends, forms):
        if backend in ("onnxruntime", "openvino"):
            if mode == "forward":
                found.append(Setting(mode, batch, size, "nchw", "float32", backend, form, device))
            continue
        for layout, precision in itertools.product(layouts, precisions):
            found.append(Setting(mode, batch, size, layout, precision, backend, form, device))
    return found


def _time_group(
    models: Mapping[str, nn.Module],
    costs: Mapping[str, Cost],
    settings: Mapping[tuple[str, Setting], Setting],
    peer: str | None,
    seconds: float,
    min_rounds: int,
    memory: bool,
    report: Callable[[str, float], None],
) -> list[SpeedRow]:
    first = next(iter(settings.values()))
    label = f"{first.mode}, batch {first.batch}"
    calls, peaks = {}, {}
    for number, (name, setting) in enumerate(settings):
        report(f"{label}: preparing {name}", 0.2 * number / len(settings))
        key = repr((name, setting))
        calls[key] = make_call(models[name], setting, costs[name].input_size[0])
        _try_once(calls[key], name, setting)
        if memory:
            peaks[key] = peak_memory_mb(calls[key], setting.device)
    samples = time_interleaved(
        calls,
        seconds=seconds,
        min_rounds=min_rounds,
        on_round=lambda done: report(f"{label}: round {done}", 0.2 + 0.8 * min(1.0, done / max(min_rounds, 30))),
    )
    rows = [
        SpeedRow(name, setting, samples[repr((name, setting))], peaks.get(repr((name, setting))), costs[name])
        for name, setting in settings
    ]
    return [_with_ratio(row, rows, peer) for row in rows]


def _try_once(call: Callable[[], Any], name: str, setting: Setting) -> None:
    """Run a candidate once before any is timed, so that one that cannot run costs no measurement."""
    try:
        call()
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{name} can't run {setting.mode} on {setting.batch} × {setting.image_size[0]}×{setting.image_size[1]},"
            f" {setting_words(setting)}: {reason}. Try another batch size, image size or setting"
        ) from error


def _with_ratio(row: SpeedRow, rows: Sequence[SpeedRow], peer: str | None) -> SpeedRow:
    rivals = [r for r in rows if r.model == peer and r.setting.precision == row.setting.precision]
    if not rivals:
        return row
    fastest = min(rivals, key=lambda rival: rival.samples.median_s)
    return SpeedRow(
        row.model, row.setting, row.samples, row.peak_memory_mb, row.cost, ratio(row.samples, fastest.samples)
    )


def setting_words(setting: Setting) -> str:
    """Return what is special about a setting in a few words, for tables."""
    entries = asdict(setting)
    words = [entries["layout"], entries["precision"]]
    if setting.backend != "eager":
        words.append(setting.backend)
    if setting.fused:
        words.append("fused")
    return " ".join(words)
