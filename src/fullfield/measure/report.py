"""The page of a comparison: one HTML file with all figures, what they were taken from, and what is missing.

The page is self-contained: pictures are data URIs, charts are inline SVG, there is no script, and its content security
policy forbids every request. Names of models, files and classes are escaped by Jinja. A figure that was not measured
is a dash, and the reason stands in a table of its own. Layout, style and wording are in `report.html.jinja` beside
this file; Python prepares values and leaves no HTML to be built here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from fullfield.errors import ConfigError, MissingExtraError
from fullfield.files import atomic_write
from fullfield.measure.cam_result import Cam
from fullfield.measure.compare_charts import HEIGHT, WIDTH, chart, panels
from fullfield.measure.compare_pictures import cam_uri, erf_uri, picture_uri
from fullfield.measure.compare_result import Compared, Comparison
from fullfield.measure.compare_stages import StageCost
from fullfield.measure.erf_result import Erf

__all__ = ["write_page"]

_DASH = "–"
_OUTLINED = 0.5  # the share of the mass whose square is drawn, as in `erf_plot`
_PARTS = {
    "building": "Building the model",
    "accuracy": "Accuracy",
    "cost": "Parameters and MACs",
    "stages": "Cost by stage",
    "erf": "Receptive fields",
    "cam": "Class-activation map",
    "speed": "Speed and memory",
}
_WEIGHTS = {"trained": "trained weights", "random": "random weights", "unknown": "weights unknown"}


@dataclass(frozen=True)
class _Card:
    """The best model in one figure."""

    what: str
    figure: str
    model: str


def write_page(comparison: Comparison, path: str | Path) -> Path:
    """Write a comparison as one HTML page, atomically.

    Args:
        comparison: What `compare` returned.
        path: The file; its folder must exist.

    Raises:
        ConfigError: No model could be built, so there is nothing to show.
        MissingExtraError: Jinja2, or matplotlib for pictures, is not installed.
        RunError: The file can't be written.
    """
    if not comparison.models:
        reasons = "; ".join(f"{item.model}: {item.reason}" for item in comparison.not_measured if item.model)
        raise ConfigError(f"no model could be built, so {path} would be empty ({reasons})")
    page = _render(comparison)
    path = Path(path)
    with atomic_write(path) as partial:
        # File names that are not UTF-8 hold lone surrogates; they are shown as escapes.
        partial.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def _render(comparison: Comparison) -> str:
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise MissingExtraError("a page needs Jinja2, which is not installed; pip install 'fullfield[look]'") from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": _percent, "count": _count, "ms": _ms}
    source = resources.files("fullfield.measure").joinpath("report.html.jinja").read_text(encoding="utf-8")
    models = comparison.models
    budget = comparison.budget
    return environment.from_string(source).render(
        comparison=comparison,
        title=_title(models),
        duration=_duration(comparison.seconds),
        cards=_cards(models),
        weights=_WEIGHTS,
        peer=next(((number, m.label) for number, m in enumerate(models, 1) if m.throughput is not None), None),
        compared=sum(m.throughput is not None for m in models) > 1,
        sources=_sources(models),
        charts=[chart(panel) for panel in panels(comparison)],
        width=WIDTH,
        height=HEIGHT,
        stages=[(model, _bars(model.stages)) for model in models if model.stages],
        longest=max((len(model.stages) for model in models), default=0),
        fields=[(model, [_field(result) for result in model.erfs]) for model in models if model.erfs],
        maps=[(model, model.cam, cam_uri(model.cam), _scores(model.cam)) for model in models if model.cam is not None],
        photograph=_photograph(models),
        missing=[(_PARTS.get(part, part), models, reason) for part, models, reason in comparison.gaps()],
        amounts={
            "images of a receptive field": f"at most {budget.erf_images}",
            "timing of each batch size": f"{budget.timing_seconds:g} s, at least {budget.min_rounds} rounds",
            "images a call": f"1 (latency), {budget.batch} (throughput, memory)",
            "calls for the time of a stage": str(budget.stage_calls),
            "steps of deletion and insertion": str(budget.cam_steps),
        },
    )


def _percent(share: float | None) -> str:
    if share is None or not math.isfinite(share):
        return _DASH
    if 0 < share < 0.001:
        return f"{100 * share:.2g} %"
    return f"{100 * share:.1f} %" if share < 0.9995 or share > 1 else "100 %"


def _count(number: float | None) -> str:
    """Format a number on three digits with k, M or G."""
    if number is None or not math.isfinite(number):
        return _DASH
    for unit, size in ((" G", 1e9), (" M", 1e6), (" k", 1e3)):
        if abs(number) >= 0.9995 * size:
            return f"{_three(number / size)}{unit}"
    return _three(number)


def _ms(number: float | None) -> str:
    return _DASH if number is None else f"{_three(number)} ms"


def _three(number: float) -> str:
    """Format on three digits and without an exponent, as 0.123, 12.3, 123 or 1,234."""
    if number == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(float(f"{number:.3g}"))))
    return f"{number:,.{max(0, digits)}f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _title(models: tuple[Compared, ...]) -> str:
    return f"{len(models)} models side by side" if len(models) > 1 else models[0].label


def _cards(models: tuple[Compared, ...]) -> list[_Card]:
    """Return the best model of each figure that more than one model has."""
    figures: tuple[tuple[str, Callable[[Compared], float | None], bool, Callable[[float], str]], ...] = (
        ("Highest top-1", lambda m: m.accuracy.top1 if m.accuracy else None, True, _percent),
        ("Fewest parameters", lambda m: m.cost.cost.params if m.cost else None, False, _count),
        ("Fewest MACs", lambda m: m.cost.cost.macs if m.cost else None, False, _count),
        ("Shortest latency", lambda m: m.latency.samples.percentile_ms(50) if m.latency else None, False, _ms),
        ("Most images/s", lambda m: m.throughput.images_per_s if m.throughput else None, True, _count),
        ("Least memory", lambda m: m.throughput.peak_memory_mb if m.throughput else None, False, _megabytes),
    )
    cards = []
    for what, of, largest, written in figures:
        known = [(value, m.label) for m in models if (value := of(m)) is not None]
        if len(known) > 1:
            value, label = (max if largest else min)(known, key=lambda pair: pair[0])
            cards.append(_Card(what, written(value), label))
    return cards


def _megabytes(number: float) -> str:
    return f"{number:,.0f} MB"


def _sources(models: tuple[Compared, ...]) -> dict[str, list[str]]:
    """Return source of accuracies -> the models that have theirs from it."""
    sources: dict[str, list[str]] = {}
    for model in models:
        if model.accuracy is not None:
            sources.setdefault(model.accuracy.source, []).append(model.label)
    return sources


def _bars(stages: tuple[StageCost, ...]) -> list[dict[str, Any]]:
    """Return a bar for each of MACs, time and parameters: its name, its total, and each stage's share and figure."""
    bars = []
    for name, values, written in (
        ("MACs", [float(stage.macs) for stage in stages], _count),
        ("time", [stage.ms for stage in stages], _ms),
        ("parameters", [float(stage.params) for stage in stages], _count),
    ):
        known = [value for value in values if value is not None]
        total = sum(known)
        if len(known) < len(values) or total <= 0:
            continue
        pieces = [
            {"name": stage.name, "share": value / total, "figure": written(value)}
            for stage, value in zip(stages, known, strict=True)
        ]
        bars.append({"name": name, "total": written(total), "pieces": pieces})
    return bars


def _field(result: Erf) -> dict[str, Any]:
    """Return a field's picture and the square that holds half of it, in pixels from the top left corner."""
    (y, x), square = result.centre, result.squares[_OUTLINED]
    return {
        "result": result,
        "uri": erf_uri(result),
        "square": (x + 0.5 - square.width / 2, y + 0.5 - square.height / 2, square.width, square.height),
    }


def _scores(cam: Cam) -> str:
    """Return the areas under the deletion and insertion curves beside those of random maps."""
    if cam.scores is None:
        return ""
    s = cam.scores
    return (
        f"deletion {s.deletion.auc:.2f} (random {s.random_deletion.auc:.2f}),"
        f" insertion {s.insertion.auc:.2f} (random {s.random_insertion.auc:.2f})"
    )


def _photograph(models: tuple[Compared, ...]) -> dict[str, str] | None:
    """Return the image that the class-activation maps are of, as the first model saw it."""
    cam = next((model.cam for model in models if model.cam is not None), None)
    return None if cam is None else {"uri": picture_uri(cam.image), "name": Path(cam.source).name}
