"""The picture of a `Bench`: throughput over batch size, one panel a mode, one line a model's fastest candidates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fullfield.errors import MissingExtraError
from fullfield.files import atomic_write

if TYPE_CHECKING:
    from fullfield.measure.speed import Bench

__all__ = ["plot_bench"]


def plot_bench(measured: Bench, path: str | Path) -> Path:
    """Draw a bench to a .png, .svg or .pdf file.

    The band of a line is the range from the 90th to the 10th percentile of the latency.

    Raises:
        MissingExtraError: matplotlib is not installed.
        RunError: The file can't be written.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("drawing needs matplotlib: pip install 'fullfield[look]'") from error
    path = Path(path)
    modes = list(dict.fromkeys(row.setting.mode for row in measured.rows))
    figure = Figure(figsize=(5.2 * len(modes), 3.8), layout="constrained")
    for panel, mode in zip(figure.subplots(1, len(modes), squeeze=False)[0], modes, strict=True):
        _draw_mode(panel, measured, mode)
    figure.suptitle(
        f"{measured.environment['device']}, {measured.environment['threads']} threads, torch"
        f" {measured.environment['torch']}; random images",
        fontsize=8,
        color="#666666",
    )
    with atomic_write(path) as partial:
        figure.savefig(partial, format=path.suffix.lstrip(".") or "png", dpi=150)
    return path


def _draw_mode(panel: Any, measured: Bench, mode: str) -> None:
    rows = [row for row in measured.rows if row.setting.mode == mode]
    for model in dict.fromkeys(row.model for row in rows):
        batches = sorted({row.setting.batch for row in rows if row.model == model})
        best = [
            min(
                (row for row in rows if row.model == model and row.setting.batch == batch),
                key=lambda row: row.samples.median_s,
            )
            for batch in batches
        ]
        line = panel.plot(batches, [row.images_per_s for row in best], marker="o", label=model)[0]
        panel.fill_between(
            batches,
            [batch / row.samples.percentile_ms(90) * 1e3 for batch, row in zip(batches, best, strict=True)],
            [batch / row.samples.percentile_ms(10) * 1e3 for batch, row in zip(batches, best, strict=True)],
            alpha=0.15,
            color=line.get_color(),
        )
    panel.set_xscale("log", base=2)
    ticks = sorted({row.setting.batch for row in rows})
    panel.set_xticks(ticks, [str(tick) for tick in ticks])
    panel.set(title={"forward": "forward", "train": "training step"}[mode], xlabel="images a call")
    panel.set_ylabel("images/s")
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8)
