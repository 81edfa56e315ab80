"""The tables that `fullfield eval` prints of detectors and segmenters."""

from __future__ import annotations

import math
from typing import Any

from rich.markup import escape
from rich.table import Table

from fullfield.progress import console, output

__all__ = ["print_detection", "print_segmentation"]

CLASSES = 30  # more do not fit on a screen


def print_detection(evaluation: Any) -> None:
    """Print a `DetectionEvaluation`: COCO's figures of boxes and masks, and AP by class, worst first."""
    screen = output()
    result = evaluation.result
    _print_head(evaluation)
    for what, figures in (("boxes", result.box), ("masks", result.mask)):
        if figures is not None:
            named = (("AP", "ap"), ("AP50", "ap50"), ("AP75", "ap75"), ("small", "ap_small"), ("medium", "ap_medium"))
            words = "   ".join(f"{name} {_percent(getattr(figures, key))}" for name, key in named)
            screen.print(f"{what}   {words}   large {_percent(figures.ap_large)}   AR100 {_percent(figures.ar100)}")
    table = Table(box=None, header_style="bold", title="AP by class, worst first", title_justify="left")
    table.add_column("class")
    table.add_column("AP", justify="right")
    if result.mask is not None:
        table.add_column("mask AP", justify="right")
    table.add_column("objects", justify="right")
    ap = result.box.per_class
    order = _worst_first(ap)
    for label in order[:CLASSES]:
        masks = [] if result.mask is None else [_percent(result.mask.per_class[label])]
        name = escape(evaluation.classes[label])
        table.add_row(name, _percent(ap[label]), *masks, f"{evaluation.objects[label]:,}")
    _print_table(table, len(order))
    _print_unreadable(evaluation)


def print_segmentation(evaluation: Any) -> None:
    """Print a `SegmentationEvaluation`: mean IoU and what goes with it, and IoU by class, worst first."""
    result = evaluation.result
    _print_head(evaluation)
    output().print(
        f"mIoU {_percent(result.miou)}   mean accuracy {_percent(result.macc)}   pixel accuracy"
        f" {_percent(result.pixel_accuracy)}   always the most frequent class: mIoU {_percent(result.majority_miou)}"
    )
    table = Table(box=None, header_style="bold", title="IoU by class, worst first", title_justify="left")
    table.add_column("class")
    for name in ("IoU", "accuracy", "pixels"):
        table.add_column(name, justify="right")
    total = max(1, int(result.confusion.sum()))
    order = _worst_first(result.iou.tolist())
    for label in order[:CLASSES]:
        share = int(result.confusion[label].sum()) / total
        name = escape(evaluation.classes[label])
        table.add_row(name, _percent(result.iou[label]), _percent(result.acc[label]), f"{share:.1%}")
    _print_table(table, len(order))
    _print_unreadable(evaluation)


def _print_head(evaluation: Any) -> None:
    screen = output()
    screen.print(f"[bold]{escape(evaluation.model)}[/] on {evaluation.result.images:,} images ({evaluation.split})")
    if not evaluation.trained:
        screen.print("the weights are random: these figures say nothing of the model", style="red")


def _print_table(table: Table, classes: int) -> None:
    if classes > CLASSES:
        table.caption = f"and {classes - CLASSES} more"
    output().print(table)


def _print_unreadable(evaluation: Any) -> None:
    for bad in evaluation.unreadable:
        console.print(f"left out: {escape(bad.path)}: {escape(bad.reason)}", style="yellow", soft_wrap=True)


def _worst_first(values: Any) -> list[int]:
    """Return positions by rising value; those without one come last."""
    return sorted(range(len(values)), key=lambda i: (math.isnan(values[i]), values[i]))


def _percent(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.1%}"
