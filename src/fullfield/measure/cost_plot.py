"""The picture of a `CostReport`: the MACs of every module as a bar, coloured by kind of operator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fullfield.errors import MissingExtraError
from fullfield.files import atomic_write
from fullfield.measure.cost_trace import KINDS

if TYPE_CHECKING:
    from fullfield.measure.cost_report import CostReport

__all__ = ["plot_cost"]


def plot_cost(report: CostReport, path: str | Path, depth: int = 2) -> Path:
    """Draw a report to a .png, .svg or .pdf file.

    Args:
        report: What was counted.
        path: The file; its folder must exist.
        depth: Names in a module's path, see `CostReport.by_module`.

    Raises:
        ConfigError: The depth is negative.
        MissingExtraError: matplotlib is not installed.
        RunError: The file can't be written.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("drawing needs matplotlib: pip install 'fullfield[look]'") from error
    path = Path(path)
    groups = [group for group in report.by_module(depth) if group.flops][::-1]  # the first on top
    figure = Figure(figsize=(7.2, 1.4 + 0.28 * max(1, len(groups))), layout="constrained")
    panel = figure.subplots()
    left = [0.0] * len(groups)
    for number, kind in enumerate(KINDS):
        gmacs = [sum(op.flops for op in group.operators if op.kind == kind) / 2e9 for group in groups]
        if any(gmacs):
            panel.barh([g.name or "(itself)" for g in groups], gmacs, left=left, label=kind, color=f"C{number}")
            left = [start + width for start, width in zip(left, gmacs, strict=True)]
    height, width = report.cost.input_size[1:]
    panel.set(xlabel="GMACs", title=f"{report.cost.name}, {height}×{width}: {report.cost.macs / 1e9:.2f} GMACs")
    panel.spines[["top", "right"]].set_visible(False)
    if panel.get_legend_handles_labels()[0]:
        panel.legend(frameon=False, fontsize=8)
    with atomic_write(path) as partial:
        figure.savefig(partial, format=path.suffix.lstrip(".") or "png", dpi=150)
    return path
