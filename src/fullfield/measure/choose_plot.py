"""The picture of a `Choice`: the latency (or the size) of every model over its MACs, and the budget as a line."""

from __future__ import annotations

from pathlib import Path

from fullfield.errors import ConfigError, MissingExtraError
from fullfield.files import atomic_write
from fullfield.measure.choose import Candidate, Choice

__all__ = ["plot_choice"]

FITS, REJECTED, MUTED = "#1f5fbf", "#b8bec6", "#666666"


def plot_choice(choice: Choice, path: str | Path) -> Path:
    """Draw a choice to a .png, .svg or .pdf file; models that were not run are not in a picture of latencies.

    Args:
        choice: What `choose` returned.
        path: The file; its folder must exist.

    Raises:
        ConfigError: There is no model to draw, or the file's format is unknown.
        MissingExtraError: matplotlib is not installed.
        RunError: The file can't be written.
    """
    path = Path(path)
    kind = path.suffix.lstrip(".")
    if kind not in ("png", "svg", "pdf"):
        raise ConfigError(f"{path} must end in .png, .svg or .pdf")
    limits = choice.limits
    name, limit = next((n, v) for n, v in vars(limits).items() if v is not None)
    points = [(c, value) for c in choice.candidates if c.cost is not None and (value := _figure(c, name)) is not None]
    if not points:
        raise ConfigError("there is nothing to draw: no model was counted and run")
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter
    except ModuleNotFoundError as error:
        raise MissingExtraError("drawing needs matplotlib: pip install 'fullfield[look]'") from error
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    for candidate, value in points:
        assert candidate.cost is not None  # noqa: S101 - for the type checker
        colour = REJECTED if candidate.rejected else FITS
        axes.plot(candidate.cost.macs / 1e9, value, marker="o", markersize=4, color=colour)
        if not candidate.rejected:
            axes.annotate(
                candidate.model,
                (candidate.cost.macs / 1e9, value),
                xytext=(5, 2),
                textcoords="offset points",
                fontsize=7,
                parse_math=False,
            )
    axes.axhline(limit, color=MUTED, linewidth=1, linestyle="--")
    words = {"latency_ms": "latency, ms (median)", "memory_mb": "memory, MB", "size_mb": "weights, MB"}
    axes.set(xlabel="MACs for one image, G", ylabel=words[name], xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.15)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    env = choice.environment
    figure.suptitle(
        f"{env['device']}, threads: {env['threads']}, torch {env['torch']}, images a call: {choice.batch}; blue fits",
        fontsize=8,
        color=MUTED,
    )
    with atomic_write(path) as partial:
        figure.savefig(partial, format=kind, dpi=150)
    return path


def _figure(candidate: Candidate, name: str) -> float | None:
    if name == "size_mb":
        return candidate.size_mb
    if name == "memory_mb":
        return candidate.memory_mb
    return None if candidate.speed is None else candidate.speed.samples.percentile_ms(50)
