"""The picture of a `Comparison`: accuracy over MACs and over throughput, or throughput over MACs without accuracies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fullfield.errors import ConfigError, MissingExtraError
from fullfield.files import atomic_write
from fullfield.measure.compare_charts import Panel, panels
from fullfield.measure.compare_result import Comparison

__all__ = ["plot_comparison"]

MUTED = "#666666"


def plot_comparison(comparison: Comparison, path: str | Path) -> Path:
    """Draw a comparison to a .png, .svg or .pdf file.

    Args:
        comparison: What `compare` returned.
        path: The file; its folder must exist.

    Raises:
        ConfigError: No model has two figures to draw, or the file's format is unknown.
        MissingExtraError: matplotlib is not installed.
        RunError: The file can't be written.
    """
    path = Path(path)
    kind = path.suffix.lstrip(".")
    if kind not in ("png", "svg", "pdf"):
        raise ConfigError(f"{path} must end in .png, .svg or .pdf")
    shown = panels(comparison)
    if not shown:
        raise ConfigError("there is nothing to draw: no model has MACs with a throughput or an accuracy; measure both")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("drawing needs matplotlib: pip install 'fullfield[look]'") from error
    names = max(len(model.label) for model in comparison.models)
    figure = Figure(figsize=(4.4 * len(shown) + 0.6 + 0.075 * names, 3.7), layout="constrained")
    colours = {model.label: f"C{number % 10}" for number, model in enumerate(comparison.models)}
    for axes, panel in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        _draw(axes, panel, colours)
    handles = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False, fontsize=8)
    figure.suptitle(_caption(comparison), fontsize=7.5, color=MUTED)
    with atomic_write(path) as partial:
        figure.savefig(partial, format=kind, dpi=150)
    return path


def _draw(axes: Any, panel: Panel, colours: dict[str, str]) -> None:
    for point in panel.points:
        axes.plot(point.x, point.y, marker="o", linestyle="", color=colours[point.label], label=point.label)
    axes.set(title=panel.heading, xlabel=panel.x_label, ylabel=panel.y_label)
    axes.margins(0.12)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _caption(comparison: Comparison) -> str:
    env = comparison.environment
    sources = dict.fromkeys(model.accuracy.source for model in comparison.models if model.accuracy is not None)
    told = f"{env['device']}, threads: {env['threads']}, torch {env['torch']}, {env['date']}"
    return "\n".join([told, *(f"accuracy: {source}" for source in sources)])
