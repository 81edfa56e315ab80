"""Which backbones meet a budget of latency, memory or size on this machine.

Counting is cheap and timing is not, so models are counted first, and those whose weights alone exceed a budget are
never run; nor are those that would miss the latency at the fastest matrix product seen here (see `roofline`). The rest
are run briefly, and what then comes near the latency is timed in turn, see `timing`, which decides. Accuracy is not
known here: the answer is in the order of MACs, most first, because among nets of one kind more MACs are usually more
accurate, and no more than that is meant by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from fullfield.data import read_image_data
from fullfield.errors import ConfigError, FullfieldError
from fullfield.measure.compare_speed import ToTime, fastest_rows
from fullfield.measure.cost import Cost, build, cost
from fullfield.measure.environment import environment
from fullfield.measure.listed_costs import listed_cost
from fullfield.measure.roofline import machine
from fullfield.measure.runners import reason_of
from fullfield.measure.speed import SpeedRow
from fullfield.measure.tables import Row, rows_to_dataframe, write_rows
from fullfield.models.registry import create_model, list_models
from fullfield.tasks.source import pick_device

__all__ = ["Candidate", "Choice", "Limits", "choose"]

PEAK_MARGIN = 1.25  # a convolution may be a little faster than the matrix products that the peak is taken from
NEAR = 1.5  # times the budget: what is within it after a brief run is timed again
TOGETHER = 8  # models timed in turn at once; more would fill the memory
BRIEF_ROUNDS, ROUNDS = 2, 7
MEGABYTE = 2**20

Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Limits:
    """What a model may take at most; None for no limit."""

    latency_ms: float | None = None
    """Median of one call, milliseconds."""
    memory_mb: float | None = None
    """Weights and what a call adds to them, MB."""
    size_mb: float | None = None
    """Weights in float32, MB (2^20 bytes)."""

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if not given:
            raise ConfigError("no budget was named; set latency_ms, memory_mb or size_mb (such as --latency-ms 20)")
        for name, value in given.items():
            if not value > 0:
                raise ConfigError(f"{name} must be above 0, got {value}")


@dataclass(frozen=True)
class Candidate:
    """One model, and whether it meets the budget."""

    model: str
    cost: Cost | None
    """None if it could not be counted."""
    speed: SpeedRow | None = None
    """None if it was not run."""
    rejected: str = ""
    """Why it does not meet the budget; "" if it does."""

    @property
    def size_mb(self) -> float | None:
        """Weights in float32, MB."""
        return None if self.cost is None else 4 * self.cost.params / MEGABYTE

    @property
    def memory_mb(self) -> float | None:
        """Weights and what a call adds to them, MB; None if that was not measured."""
        if self.size_mb is None or self.speed is None or self.speed.peak_memory_mb is None:
            return None
        return self.size_mb + self.speed.peak_memory_mb

    def to_row(self) -> Row:
        """Return plain values under the names of the CSV's columns."""
        speed, counted = self.speed, self.cost
        return {
            "model": self.model,
            "fits": not self.rejected,
            "macs": None if counted is None else counted.macs,
            "params": None if counted is None else counted.params,
            "size_mb": None if self.size_mb is None else round(self.size_mb, 2),
            "image_size": None if counted is None else counted.input_size[1],
            "p50_ms": None if speed is None else round(speed.samples.percentile_ms(50), 3),
            "p90_ms": None if speed is None else round(speed.samples.percentile_ms(90), 3),
            "rounds": None if speed is None else len(speed.samples.seconds),
            "layout": None if speed is None else speed.setting.layout,
            "memory_mb": None if self.memory_mb is None else round(self.memory_mb, 1),
            "rejected": self.rejected,
        }


@dataclass(frozen=True)
class Choice:
    """What `choose` found."""

    candidates: tuple[Candidate, ...]
    """Those that meet the budget first, by MACs, most first; then the others, fewest first."""
    limits: Limits
    classes: int | None
    """Classes of DATA; None without it, and models then have their own heads."""
    batch: int
    environment: dict[str, str]

    @property
    def fitting(self) -> tuple[Candidate, ...]:
        """Those that meet the budget."""
        return tuple(candidate for candidate in self.candidates if not candidate.rejected)

    def to_rows(self) -> list[Row]:
        """Return one row a model, with the budget and the environment in every one."""
        whole = {f"limit_{name}": value for name, value in vars(self.limits).items()}
        whole |= {"classes": self.classes, "batch": self.batch} | self.environment
        return [candidate.to_row() | whole for candidate in self.candidates]

    def to_dataframe(self) -> Any:
        """Return `to_rows` as a pandas data frame.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return rows_to_dataframe(self.to_rows())

    def save(self, path: str | Path) -> Path:
        """Write the rows to a .csv or .json file; see `tables.write_rows`."""
        return write_rows(self.to_rows(), path)

    def plot(self, path: str | Path) -> Path:
        """Draw latency over MACs with the budget to a .png, .svg or .pdf file; see `choose_plot`."""
        from fullfield.measure.choose_plot import plot_choice

        return plot_choice(self, path)


def choose(
    data: str | Path | None = None,
    *,
    latency_ms: float | None = None,
    memory_mb: float | None = None,
    size_mb: float | None = None,
    pattern: str = "",
    image_size: int | None = None,
    batch: int = 1,
    seconds: float = 20.0,
    device: str = "auto",
    on_progress: Report | None = None,
) -> Choice:
    """Find the backbones that meet a budget here (`fullfield choose [DATA] --latency-ms 20`).

    Args:
        data: A data set to train on: its number of classes is that of the heads. None for each model's own.
        latency_ms: The most that one call may take, milliseconds: the median, in the faster memory layout, float32.
        memory_mb: The most that weights and a call may take, MB.
        size_mb: The most that the weights may take in float32, MB.
        pattern: Which models: a shell pattern, such as "racnn*"; "" for Fullfield's own and their peers.
        image_size: Side in pixels; None for each model's own.
        batch: Images a call.
        seconds: Time for the final timing of all models that come near the latency.
        device: "auto", "cpu", "cuda", ...
        on_progress: Told what is being done and the share done, 0 to 1.

    Raises:
        ConfigError: No budget is named, or an argument is impossible.
        ModelNotFoundError: No model matches the pattern.
        DataError: The data can't be read.
    """
    limits = Limits(latency_ms, memory_mb, size_mb)
    for name, value in (("image_size", image_size), ("batch", batch)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    where = str(pick_device(device))
    classes = None if data is None else len(read_image_data(data).classes)
    names = [info.name for info in list_models(pattern)]
    report = on_progress or (lambda _text, _share: None)
    counted = []
    for number, name in enumerate(names):
        report(f"counting {name}", 0.2 * number / len(names))
        counted.append(_count(name, classes, image_size, limits))
    if latency_ms is None and memory_mb is None:
        return Choice(_sorted(counted), limits, classes, batch, environment(where))
    search = _Search(limits, classes, image_size, batch, where)
    run = search.briefly(counted, lambda text, share: report(text, 0.2 + 0.5 * share))
    near = [c for c in run if c.speed is not None and _times_over(c, limits) <= NEAR and latency_ms is not None]
    timed = search.exactly(near, seconds, lambda text, share: report(text, 0.7 + 0.3 * share))
    found = [replace(c, speed=timed.get(c.model, c.speed)) for c in run]
    return Choice(_sorted([_judged(c, limits) for c in found]), limits, classes, batch, environment(where))


def _count(name: str, classes: int | None, image_size: int | None, limits: Limits) -> Candidate:
    """Count a model, and reject it if its weights alone exceed the budget."""
    stored = listed_cost(name) if classes is None and image_size is None else None
    try:
        counted = stored or _counted(name, classes, image_size)
    except Exception as error:
        return Candidate(name, None, rejected=f"can't be built: {reason_of(error)}")
    found = Candidate(name, counted)
    size = 4 * counted.params / MEGABYTE
    for limit in (limits.size_mb, limits.memory_mb):
        if limit is not None and size > limit:
            return replace(found, rejected=f"its weights take {size:.1f} MB of {limit:g}")
    return found


def _counted(name: str, classes: int | None, image_size: int | None) -> Cost:
    model = _resized(build(name, **_head(classes)), image_size)
    return replace(cost(model, image_size=image_size), name=name)


def _head(classes: int | None) -> dict[str, int]:
    return {} if classes is None else {"num_classes": classes}


def _resized(model: nn.Module, image_size: int | None) -> nn.Module:
    """Set an attention net of a fixed size to another one."""
    resize = getattr(model, "set_input_size", None)
    if image_size is not None and callable(resize):
        resize(img_size=(image_size, image_size))
    return model


@dataclass(frozen=True)
class _Search:
    """Runs models, and keeps none of them in memory."""

    limits: Limits
    classes: int | None
    image_size: int | None
    batch: int
    device: str

    def briefly(self, counted: Sequence[Candidate], report: Report) -> list[Candidate]:
        """Run candidates a few times each, fewest MACs first, but for those that have no hope."""
        found = [c for c in counted if c.rejected]
        queue = sorted((c for c in counted if not c.rejected), key=_macs)
        peak = 0.0 if self.limits.latency_ms is None else _peak_macs_per_s(self.device)
        for number, candidate in enumerate(queue):
            least_ms = 1e3 * self.batch * _macs(candidate) / peak if peak else 0.0
            if self.limits.latency_ms is not None and least_ms > self.limits.latency_ms:
                reason = (
                    f"takes at least {least_ms:.0f} ms of {self.limits.latency_ms:g} by this machine's peak; not run"
                )
                found.append(replace(candidate, rejected=reason))
                continue
            report(f"running {candidate.model}", number / len(queue))
            rows, failed = self._time([candidate], 0.0, BRIEF_ROUNDS, ("nchw", "channels_last"))
            if failed:
                found.append(replace(candidate, rejected=f"does not run: {failed[candidate.model]}"))
            else:
                found.append(replace(candidate, speed=rows[candidate.model]))
        return found

    def exactly(self, near: Sequence[Candidate], seconds: float, report: Report) -> dict[str, SpeedRow]:
        """Time candidates against each other, in the layout in which each was faster."""
        groups = list(_groups(near))
        found: dict[str, SpeedRow] = {}
        for number, (layout, group) in enumerate(groups):
            report(f"timing {len(group)} models", number / len(groups))
            found |= self._time(group, seconds / len(groups), ROUNDS, (layout,))[0]
        return found

    def _time(
        self, candidates: Sequence[Candidate], seconds: float, rounds: int, layouts: Sequence[str]
    ) -> tuple[dict[str, SpeedRow], dict[str, str]]:
        """Return the rows, and why others have none."""
        failed: dict[str, str] = {}
        models = {}
        for candidate in candidates:
            with _recorded(candidate.model, failed):
                model = _resized(create_model(candidate.model, **_head(self.classes)), self.image_size)
                assert candidate.cost is not None  # noqa: S101 - for the type checker
                models[candidate.model] = ToTime(model.to(self.device), candidate.cost)
        rows = fastest_rows(
            models,
            batch=self.batch,
            seconds=seconds,
            min_rounds=rounds,
            device=self.device,
            layouts=layouts,
            on_failure=lambda name, error: failed.__setitem__(name, reason_of(error)),
        )
        return rows, failed


def _peak_macs_per_s(device: str) -> float:
    """Return what no model exceeds: the peak of float32, on a GPU of any precision, as convolutions may use TF32."""
    peaks = machine(device).flops_per_s
    return PEAK_MARGIN * (peaks["float32"] if device.startswith("cpu") else max(peaks.values())) / 2


@contextmanager
def _recorded(name: str, failed: dict[str, str]) -> Iterator[None]:
    try:
        yield
    except FullfieldError:
        raise
    except Exception as error:
        failed[name] = reason_of(error)


def _groups(near: Sequence[Candidate]) -> Iterator[tuple[str, list[Candidate]]]:
    """Yield layout and candidates, so many that fit in memory together."""
    by_layout: dict[str, list[Candidate]] = {}
    for candidate in near:
        assert candidate.speed is not None  # noqa: S101 - for the type checker
        by_layout.setdefault(candidate.speed.setting.layout, []).append(candidate)
    for layout, candidates in by_layout.items():
        for start in range(0, len(candidates), TOGETHER):
            yield layout, candidates[start : start + TOGETHER]


def _judged(candidate: Candidate, limits: Limits) -> Candidate:
    """Return a candidate with the reason for which it exceeds the budget, if it does."""
    if candidate.rejected or candidate.speed is None:
        return candidate
    taken = candidate.speed.samples.percentile_ms(50)
    if limits.latency_ms is not None and taken > limits.latency_ms:
        return replace(candidate, rejected=f"takes {taken:.1f} ms of {limits.latency_ms:g}")
    if limits.memory_mb is not None:
        memory = candidate.memory_mb
        if memory is None:
            return replace(candidate, rejected="its memory can't be measured on this system")
        if memory > limits.memory_mb:
            return replace(candidate, rejected=f"takes {memory:.0f} MB of {limits.memory_mb:g}")
    return candidate


def _times_over(candidate: Candidate, limits: Limits) -> float:
    """Return the latency over the budget; 0 without one."""
    if candidate.speed is None or limits.latency_ms is None:
        return 0.0
    return candidate.speed.samples.percentile_ms(50) / limits.latency_ms


def _macs(candidate: Candidate) -> int:
    return 0 if candidate.cost is None else candidate.cost.macs


def _sorted(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    fitting = sorted((c for c in candidates if not c.rejected), key=lambda c: (-_macs(c), c.model))
    others = sorted((c for c in candidates if c.rejected), key=lambda c: (_macs(c), c.model))
    return (*fitting, *others)
