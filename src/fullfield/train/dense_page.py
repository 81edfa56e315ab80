"""The page of a detection or segmentation run, rendered from values that `dense_report.py` gathers.

Layout and wording are in `dense_report.html.jinja`; the parts that all tasks' pages share are `report_style.css.jinja`,
`report_curves.html.jinja` and `report_end.html.jinja`. No HTML is built here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fullfield.errors import MissingExtraError
from fullfield.files import atomic_write
from fullfield.train import plots
from fullfield.train.dense_pictures import Comparison
from fullfield.train.report import _DASH, _SPLITS, _UNREADABLE, _count, _duration, _percent

__all__ = ["DensePage", "ReportFacts", "class_table", "column", "loss_curve", "score_curve", "write_page"]

# Key and heading of the columns of the history, in the order shown; those without a value are left out.
_HISTORY = {
    "epoch": "Epoch",
    "lr": "Learning rate",
    "train_loss": "Training loss",
    "val_loss": "Validation loss",
    "val_ap": "AP",
    "val_ap50": "AP50",
    "val_ap75": "AP75",
    "val_mask_ap": "Mask AP",
    "val_mask_ap50": "Mask AP50",
    "val_miou": "mIoU",
    "val_macc": "Mean accuracy",
    "val_pixel_accuracy": "Pixel accuracy",
    "images_per_s": "Images/s",
    "seconds": "Time",
}
_LOSSES = ("train_loss", "val_loss")


@dataclass(frozen=True)
class ReportFacts:
    """What the pages of all tasks have; see `RunReport`, which has the same attributes."""

    title: str
    command: str
    config: dict[str, object]
    environment: dict[str, str]
    unreadable: list[tuple[str, str]]
    notes: list[str]


@dataclass(frozen=True)
class DensePage:
    """What differs between the tasks."""

    split: str
    """val or test."""
    images: int
    """How many the figures are about."""
    headline: tuple[float | None, str]
    """The figure and what it is called."""
    under: str
    """The sentence below the bar."""
    baseline: float | None
    """The mark on the bar."""
    cards: list[tuple[str, str]]
    """Label and figure."""
    curves: list[tuple[str, str | None]]
    """Heading and SVG; None where nothing was recorded."""
    score: tuple[str, str]
    """Column of the history by which epochs are compared, and its name."""
    classes: dict[str, Any]
    """As `class_table` returns it."""
    confusion: dict[str, Any] | None
    """Of segmentation: names, shares (classes, classes) of the rows, of many classes heatmap (data URI) and cell."""
    pictures: list[Comparison]
    pictured: str
    """What is seen on the pictures."""


def write_page(report: ReportFacts, page: DensePage, history: list[dict[str, float]], path: Path) -> Path:
    """Render a page and write it to `path` in one step: a failure leaves an older file as it was.

    Args:
        report: What the pages of all tasks have.
        page: What this one has besides.
        history: The rows of metrics.csv.
        path: The HTML file.

    Returns:
        `path`.

    Raises:
        MissingExtraError: Jinja2 is not installed.
        RunError: The file cannot be written.
    """
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError(
            "A report needs Jinja2, which is not installed; pip install 'fullfield[train]'"
        ) from error
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("fullfield.train", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"percent": _percent, "count": _count}
    columns = [key for key in _HISTORY if any(key in row for row in history)]
    key, score = page.score
    known = [row for row in history if math.isfinite(row.get(key, math.nan))]
    best = max(known, key=lambda row: row[key]) if known else None
    text = templates.get_template("dense_report.html.jinja").render(
        report=report,
        page=page,
        images=page.images,
        split=_SPLITS.get(page.split, page.split),
        best_epoch=best and (score, best[key], int(best["epoch"])),
        curves=page.curves,
        history_head=[_HISTORY[key] for key in columns],
        history=[[_history_cell(key, row) for key in columns] for row in history],
        unreadable=report.unreadable[:_UNREADABLE],
    )
    with atomic_write(path) as partial:
        # file names that are not UTF-8 hold lone surrogates; they are shown as escapes
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


def loss_curve(history: list[dict[str, float]]) -> tuple[str, str | None]:
    """Return heading and SVG of the losses over the epochs; None where there are none."""
    series = {"training": column(history, "train_loss"), "validation": column(history, "val_loss")}
    about = "The loss over the epochs; the table below has the values."
    return "Loss", plots.curves_svg(column(history, "epoch"), series, name="loss", description=about)


def score_curve(
    history: list[dict[str, float]],
    columns: Mapping[str, str],
    heading: str,
    baseline: tuple[str, float] | None = None,
) -> tuple[str, str | None]:
    """Return heading and SVG of two figures over the epochs; `columns` is label to column of the history."""
    svg = plots.curves_svg(
        column(history, "epoch"),
        {label: column(history, key) for label, key in columns.items()},
        name=next(iter(columns.values())),
        description=f"{' and '.join(columns)} over the epochs; the table below has the values.",
        percent=True,
        baseline=baseline,
    )
    return heading, svg


def column(history: list[dict[str, float]], key: str) -> list[float]:
    """Return a column of metrics.csv, NaN where it has no value."""
    return [row.get(key, math.nan) for row in history]


def class_table(
    classes: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
    counted: str,
    counts: Sequence[int],
    figures: Mapping[str, Sequence[float]],
    mistakes: Sequence[tuple[str, float] | None] = (),
) -> dict[str, Any]:
    """Return heads and rows of the table of classes, the worst by the first figure first, those without one last."""
    rows = [
        {
            "name": name,
            "colour": "rgb({} {} {})".format(*colours[label]),
            "count": counts[label],
            "shares": [value if math.isfinite(value := values[label]) else None for values in figures.values()],
            "mistake": mistakes[label] if mistakes else None,
        }
        for label, name in enumerate(classes)
    ]

    def order(row: dict[str, Any]) -> tuple[bool, float, int]:
        share = row["shares"][0]
        return share is None, share or 0.0, -row["count"]

    return {"counted": counted, "figures": list(figures), "mistakes": bool(mistakes), "rows": sorted(rows, key=order)}


def _history_cell(key: str, row: dict[str, float]) -> str:
    value = row.get(key, math.nan)
    if key == "seconds":
        return _duration(value)
    if key.startswith("val_") and key not in _LOSSES:
        return _percent(value)
    if not math.isfinite(value):
        # a loss that is recorded as infinite or NaN is a finding; one that was not recorded is not
        return str(value) if key in row else _DASH
    if key in ("epoch", "images_per_s"):
        return _count(round(value, 1) if value < 10 else round(value))
    return f"{value:.3g}" if key == "lr" else f"{value:.4f}"
