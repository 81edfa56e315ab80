"""The report of a training run: one HTML page that says how well it went, with what, and how to repeat it.

The page is self-contained: pictures are data URIs, there is no script, and its content security policy
forbids every request. Everything that names a class, a file or a setting is escaped by Jinja, so hostile
names are shown and never run. The page shows the figures it is given and what can be counted from the
confusion matrix and the history; a figure that is missing is a dash. Layout, style and wording are in
`report.html.jinja` beside this file; Python prepares values and leaves no HTML to be built here.
"""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fullfield.data.image import read_image
from fullfield.errors import DataError, ImageError, MissingExtraError
from fullfield.files import atomic_write, write_error
from fullfield.tasks.draw import percent
from fullfield.train import plots

__all__ = ["ReportImage", "RunReport", "write_report"]

_DASH = "–"
_THUMBNAIL_PX = 128
_TABLE_CLASSES = 20  # the largest confusion matrix shown as a table of counts
_CONFUSIONS = 20
_UNREADABLE = 200
_LABELS = {
    "top1": "Top-1",
    "top5": "Top-5",
    "mean_recall": "Mean recall",
    "majority": "Most frequent class",
    "images": "Images",
    "params": "Parameters",
    "macs": "MACs per image",
    "loss": "Loss",
}
_SHARES = ("top1", "top5", "mean_recall", "majority")
_SPLITS = {"val": "validation", "test": "test"}
# Key and heading of the columns of the history, in the order shown.
_HISTORY = {
    "epoch": "Epoch",
    "lr": "Learning rate",
    "train_loss": "Training loss",
    "val_loss": "Validation loss",
    "val_top1": "Top-1",
    "val_top5": "Top-5",
    "images_per_s": "Images/s",
    "seconds": "Time",
}


@dataclass(frozen=True)
class ReportImage:
    """One held-out image with its prediction.

    Attributes:
        path: The file, shown as the picture's tool tip.
        true: Name of the true class.
        predicted: Name of the predicted class.
        confidence: Probability of `predicted`, 0 to 1.
        image: The picture; when `None` it is read from `path`.
    """

    path: Path
    true: str
    predicted: str
    confidence: float
    image: Image.Image | None = None


@dataclass(frozen=True)
class RunReport:
    """All that the page shows. Accuracies and shares are fractions from 0 to 1.

    Attributes:
        title: The page's heading, such as "racnn_pico on blood_cells".
        command: The shell command that repeats the run.
        config: The full configuration, flat.
        environment: Versions, device, threads, date.
        history: One row an epoch with any of `epoch`, `lr`, `train_loss`, `val_loss`, `val_top1`, `val_top5`,
            `images_per_s` and `seconds`; a value may be missing or not finite.
        classes: Class names in the order of the matrix.
        split: Which images `confusion` and `metrics` are about: "val" or "test".
        confusion: (n, n) int64, rows are true and columns predicted classes.
        metrics: `images`, `top1`, `top5`, `mean_recall`, `majority` (share of the most frequent class),
            `params`, `macs` and others, each optional.
        best: The most confident right predictions.
        worst: The most confident wrong predictions.
        unreadable: Path and reason of each image that was skipped.
        notes: Sentences the reader should know.

    Raises:
        DataError: The matrix is not n × n for n classes.
    """

    title: str
    command: str
    config: dict[str, object]
    environment: dict[str, str]
    history: list[dict[str, float]]
    classes: tuple[str, ...]
    split: str
    confusion: npt.NDArray[np.int64]
    metrics: dict[str, float]
    best: list[ReportImage]
    worst: list[ReportImage]
    unreadable: list[tuple[str, str]]
    notes: list[str]

    def __post_init__(self) -> None:
        n = len(self.classes)
        if n < 1 or self.confusion.shape != (n, n):
            raise DataError(
                f"the confusion matrix has shape {self.confusion.shape}, but {n} classes need ({n}, {n}); "
                "count it over the same class names"
            )


def write_report(report: RunReport, path: Path) -> Path:
    """Render a report and write it to `path` in one step: a failure leaves an older file as it was.

    Args:
        report: What to show.
        path: The HTML file; its folder is made if needed.

    Returns:
        `path`.

    Raises:
        MissingExtraError: Jinja2 or matplotlib is not installed.
        RunError: The file cannot be written.
    """
    page = _render(report)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    with atomic_write(path) as partial:
        # File names that are not UTF-8 hold lone surrogates; they are shown as escapes.
        partial.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def _render(report: RunReport) -> str:
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError(
            "A report needs Jinja2, which is not installed; pip install 'fullfield[train]'"
        ) from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.loader = jinja2.PackageLoader("fullfield.train", ".")
    environment.filters |= {"percent": _percent, "count": _count}
    source = resources.files("fullfield.train").joinpath("report.html.jinja").read_text(encoding="utf-8")
    history = [{"epoch": number, **row} for number, row in enumerate(report.history, 1)]
    metrics = {key: value for key, value in report.metrics.items() if math.isfinite(value)}
    n = len(report.classes)
    as_table = n <= _TABLE_CLASSES
    heatmap, heatmap_classes = (b"", 1) if as_table else plots.confusion_png(report.confusion)
    total = int(report.confusion.sum())
    return environment.from_string(source).render(
        report=report,
        split=_SPLITS.get(report.split, report.split),
        top1=metrics.get("top1"),
        majority=metrics.get("majority"),
        images=metrics.get("images"),
        cards=_cards(report),
        curves=_curves(report, history),
        best_epoch=_best_epoch(history),
        history_head=list(_HISTORY.values()),
        history=[[_history_cell(key, row) for key in _HISTORY] for row in history],
        as_table=as_table,
        shares=plots.row_shares(report.confusion).tolist() if as_table else [],
        heatmap=_data_uri(heatmap, "png"),
        heatmap_classes=heatmap_classes,
        confusions=_confusions(report.confusion, report.classes),
        recalls=_recalls(report.confusion, report.classes),
        total=total,
        wrong=total - int(np.trace(report.confusion)),
        best=[(image, _thumbnail(image)) for image in report.best],
        worst=[(image, _thumbnail(image)) for image in report.worst],
        unreadable=report.unreadable[:_UNREADABLE],
    )


def _percent(share: float | None) -> str:
    return _DASH if share is None else percent(share)


def _count(number: float | None) -> str:
    """Format a number: whole ones with thousands separators, from a million on three digits and M or G."""
    if number is None or not math.isfinite(number):
        return _DASH
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:.4g}"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return _DASH
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _cards(report: RunReport) -> list[tuple[str, str]]:
    """Return label and figure of the cards: the known metrics, then any others, then those of the run."""
    metrics = report.metrics
    # Among five classes or fewer the right one is always in the first five.
    known = [key for key in ("top5", "mean_recall", "params", "macs") if key != "top5" or len(report.classes) > 5]
    others = [key for key in metrics if key not in (*known, "top1", "top5", "majority", "images")]
    cards = [
        (_LABELS.get(key, key), (_percent if key in _SHARES else _count)(metrics.get(key))) for key in (*known, *others)
    ]
    cards.append(("Epochs", str(len(report.history))))
    seconds = [row["seconds"] for row in report.history if math.isfinite(row.get("seconds", math.nan))]
    cards.append(("Training time", _duration(sum(seconds)) if seconds else _DASH))
    return cards


def _curves(report: RunReport, history: list[dict[str, float]]) -> list[tuple[str, str | None]]:
    """Return heading and SVG of the loss and the accuracy curve; `None` where nothing was recorded."""

    def column(key: str) -> list[float]:
        return [row.get(key, math.nan) for row in history]

    accuracy = {"top-1": column("val_top1")}
    if len(report.classes) > 5:
        accuracy["top-5"] = column("val_top5")
    # The history is about the validation split, so another split's majority does not belong beside it.
    majority = report.metrics.get("majority", math.nan) if report.split == "val" else math.nan
    loss_svg = plots.curves_svg(
        column("epoch"),
        {"training": column("train_loss"), "validation": column("val_loss")},
        name="loss",
        description="Training and validation loss over the epochs; the table below has the values.",
    )
    accuracy_svg = plots.curves_svg(
        column("epoch"),
        accuracy,
        name="accuracy",
        description="Validation accuracy over the epochs; the table below has the values.",
        percent=True,
        baseline=("most frequent class", majority),
    )
    return [("Loss", loss_svg), ("Accuracy on the validation split", accuracy_svg)]


def _best_epoch(history: list[dict[str, float]]) -> tuple[str, float] | None:
    """Return epoch and value of the highest validation top-1, the earliest of equals."""
    known = [row for row in history if math.isfinite(row.get("val_top1", math.nan))]
    if not known:
        return None
    best = max(known, key=lambda row: row["val_top1"])
    return _history_cell("epoch", best), best["val_top1"]


def _history_cell(key: str, row: dict[str, float]) -> str:
    value = row.get(key, math.nan)
    if key in ("val_top1", "val_top5"):
        return _percent(value)
    if key == "seconds":
        return _duration(value)
    if not math.isfinite(value):
        # A loss that is recorded as infinite or NaN is a finding; one that was not recorded is not.
        return str(value) if key in row else _DASH
    if key in ("epoch", "images_per_s"):
        return _count(round(value, 1) if value < 10 else round(value))
    return f"{value:.3g}" if key == "lr" else f"{value:.4f}"


def _confusions(confusion: npt.NDArray[np.int64], classes: tuple[str, ...]) -> list[tuple[str, str, int]]:
    """Return true class, predicted class and count of the most frequent confusions, highest first."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]
    rows, columns = np.unravel_index(order, wrong.shape)
    return [(classes[i], classes[j], int(wrong[i, j])) for i, j in zip(rows, columns, strict=True) if wrong[i, j]]


def _recalls(confusion: npt.NDArray[np.int64], classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return name, images, right, recall and the commonest mistake of each class, worst first.

    A class without images has no recall and comes last.
    """
    images, right = confusion.sum(axis=1), np.diag(confusion)
    rows = []
    for i, name in enumerate(classes):
        wrong = confusion[i].copy()
        wrong[i] = 0
        mistake = int(wrong.argmax())
        row = {
            "name": name,
            "images": int(images[i]),
            "right": int(right[i]),
            "recall": float(right[i] / images[i]) if images[i] else None,
            "mistake": (classes[mistake], int(wrong[mistake])) if wrong[mistake] else None,
        }
        rows.append(row)
    return sorted(rows, key=lambda row: (row["recall"] is None, row["recall"] or 0.0, -row["images"]))


def _thumbnail(shown: ReportImage) -> dict[str, Any] | None:
    """Return the data URI of a small JPEG and whether it is tiny; `None` for a picture that cannot be read."""
    try:
        image = read_image(shown.path, min_side=_THUMBNAIL_PX) if shown.image is None else shown.image
        image = image.convert("RGB")
    except (ImageError, OSError):  # OSError: a given picture that Pillow has not decoded yet
        return None
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=82, optimize=True)
    return {"uri": _data_uri(buffer.getvalue(), "jpeg"), "tiny": max(image.size) <= _THUMBNAIL_PX // 2}


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
