"""Pictures of shift consistency: how often models answer alike, and the equivariance error of their stages.

Matplotlib comes with the extra `look`, is imported on first use and is used without pyplot, so no display, backend or
global figure is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fullfield.errors import ConfigError, MissingExtraError
from fullfield.files import atomic_write
from fullfield.measure.shift_result import Consistency, Estimate, Shift

__all__ = ["plot_shifts"]

MUTED = "#666666"
KINDS = {"circular": ("-", "o"), "one_pixel": (":", "s"), "cropped": ("--", "^")}
NAMES = {
    "circular": "circular, whole units",
    "one_pixel": "circular, one pixel",
    "cropped": "cropped, whole units",
}


def plot_shifts(results: Sequence[Shift], path: str | Path) -> Path:
    """Draw results to a .png, .svg or .pdf file.

    Above, the share of pairs of shifted copies with the same likeliest class; below, the equivariance error of every
    stage, a colour a model. Bars and ticks are standard errors over the images.

    Args:
        results: Of any models; the consistency is left out where none was measured.
        path: The file; its folder must exist.

    Raises:
        ConfigError: There is no result, or the file's format is unknown.
        MissingExtraError: matplotlib is not installed.
        RunError: The file can't be written.
    """
    path = Path(path)
    if not results:
        raise ConfigError(f"there is nothing to draw, so {path} would be empty")
    kind = path.suffix.lstrip(".")
    if kind not in ("png", "svg", "pdf"):
        raise ConfigError(f"{path} must end in .png, .svg or .pdf")
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ModuleNotFoundError as error:
        raise MissingExtraError("drawing needs matplotlib: pip install 'fullfield[look]'") from error
    answered = [result for result in results if result.circular and result.cropped]
    heights = ([0.5 * len(answered) + 0.5] if answered else []) + [3.0]
    figure = Figure(figsize=(6.8, sum(heights) + 1.1), layout="constrained")
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    if answered:
        _draw_consistency(panels[0], answered)
    colours = {id(result): f"C{index % 10}" for index, result in enumerate(results)}
    for result in results:
        _draw_errors(panels[-1], result, colours[id(result)])
    _finish_errors(panels[-1], max(len(result.stages) for result in results))
    lines = [Line2D([], [], color=colours[id(r)], label=f"{r.model}, {r.weights} weights") for r in results]
    lines += [
        Line2D([], [], color=MUTED, linestyle=style, marker=marker, markersize=4, label=NAMES[name])
        for name, (style, marker) in KINDS.items()
    ]
    panels[-1].legend(handles=lines, frameon=False, fontsize=7, ncols=2, loc="upper left", bbox_to_anchor=(0, -0.16))
    random = any(result.weights == "random" for result in results)
    figure.suptitle(_caption(results), fontsize=8, color="#b91c1c" if random else MUTED)
    with atomic_write(path) as partial:
        figure.savefig(partial, format=kind, dpi=130)
    return path


def _draw_consistency(panel: Any, results: Sequence[Shift]) -> None:
    for row, result in enumerate(results):
        for offset, colour, found in ((-0.19, "#1d4ed8", result.circular), (0.19, "#0f766e", result.cropped)):
            assert isinstance(found, Consistency)  # noqa: S101 - for the type checker
            agreement = found.agreement
            panel.barh(row + offset, agreement.mean, height=0.34, color=colour, xerr=agreement.error)
            panel.text(0.008, row + offset, _percent(agreement), va="center", fontsize=7.5, color="white")
    panel.set_yticks(range(len(results)), [result.model for result in results], fontsize=8)
    panel.set(xlim=(0, 1), ylim=(len(results) - 0.5, -0.5))
    panel.set_xlabel("same likeliest class, share of pairs (blue: circular shifts, green: cropped)", fontsize=8)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)


def _draw_errors(panel: Any, result: Shift, colour: str) -> None:
    for name, (style, marker) in KINDS.items():
        found = [(i, getattr(stage, name)) for i, stage in enumerate(result.stages)]
        points = [(i, estimate.mean, estimate.error or 0.0) for i, estimate in found if estimate is not None]
        if points:
            x, y, error = zip(*points, strict=True)
            panel.errorbar(x, y, error, color=colour, linestyle=style, marker=marker, markersize=4, linewidth=1.2)


def _finish_errors(panel: Any, stages: int) -> None:
    panel.set_xticks(range(stages))
    panel.set_xlabel("stage", fontsize=8)
    panel.set_ylabel("equivariance error", fontsize=8)
    panel.set_ylim(bottom=0)
    panel.tick_params(labelsize=8)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


def _percent(estimate: Estimate) -> str:
    return f"{estimate.mean:.1%}" + ("" if estimate.error is None else f" ± {100 * estimate.error:.1f}")


def _caption(results: Sequence[Shift]) -> str:
    told = "; ".join(dict.fromkeys(f"{r.images}, {'×'.join(map(str, r.image_size))} px" for r in results))
    caption = f"shifts of up to {' and '.join(dict.fromkeys(str(r.max_shift) for r in results))} pixels, {told}"
    if any(result.weights == "random" for result in results):
        caption += "\nRANDOM weights: the classes mean nothing, the maps show the architecture"
    return caption
