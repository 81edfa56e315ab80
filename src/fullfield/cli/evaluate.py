"""`fullfield eval RUN [DATA]`: the figures of the run's task, as a whole and by class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tyro
from rich.markup import escape
from rich.table import Table

from fullfield.cli.evaluate_dense import print_detection, print_segmentation
from fullfield.cli.parse import parse
from fullfield.files import write_json
from fullfield.progress import console, output
from fullfield.tasks.evaluate import Evaluation
from fullfield.tasks.evaluate_any import evaluate_any

__all__ = ["EvalArguments", "run"]

MATRIX_CLASSES = 12  # more do not fit on a screen
CONFUSIONS = 10


@dataclass(frozen=True)
class EvalArguments:
    """Measure a trained model on annotated images: top-1 and confusion, average precision, or mean IoU."""

    run: str
    """Run folder, checkpoint file, or registered model."""
    data: tyro.conf.Positional[str | None] = None
    """Images annotated for the run's task, or sample:NAME. By default the run's own data."""
    split: Literal["auto", "train", "val", "test", "all"] = "auto"
    """Which part. auto: test if there is one, else the run's validation part, or all of another data set."""
    out: str | None = None
    """Write evaluation.json, figures by class, and the single predictions into this folder."""
    json: str | None = None
    """Write the figures to this file."""
    batch_size: int | None = None
    """Images at a time; by default 64, of detectors 4."""
    workers: int = 0
    """Processes that read images."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    pretrained: bool = False
    """For a registered model: fetch timm's weights."""
    window: int | None = None
    """Segmenters: look through sliding windows of this side, pixels; by default at whole images."""
    scales: tuple[float, ...] = (1.0,)
    """Segmenters: sizes at which the answers are averaged (0.75 1 1.25)."""
    flip: bool = False
    """Segmenters: look at the mirrored image, too."""


def run(argv: list[str]) -> int:
    """Evaluate and print."""
    arguments = parse(EvalArguments, "eval", argv)
    evaluation = evaluate_any(
        arguments.run,
        arguments.data,
        split=arguments.split,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        device=arguments.device,
        pretrained=arguments.pretrained,
        window=arguments.window,
        scales=arguments.scales,
        flip=arguments.flip,
    )
    if isinstance(evaluation, Evaluation):
        _print(evaluation)
    elif "miou" in evaluation.result.scalars():
        print_segmentation(evaluation)
    else:
        print_detection(evaluation)
    if arguments.out:
        console.print(f"written to {escape(str(evaluation.save(arguments.out)))}", soft_wrap=True)
    if arguments.json:
        write_json(arguments.json, evaluation.to_dict())
    return 0


def _print(evaluation: Evaluation) -> None:
    screen = output()
    result, classes = evaluation.result, evaluation.classes
    screen.print(f"[bold]{escape(evaluation.model)}[/] on {result.images:,} images ({evaluation.split})")
    if not evaluation.trained:
        screen.print("the weights are random: these figures say nothing of the model", style="red")
    top5 = f"   top-5 {result.top5:.1%}" if result.top5 is not None else ""
    screen.print(
        f"top-1 {result.top1:.1%}{top5}   mean recall {result.mean_recall:.1%}   loss {result.loss:.3f}"
        f"   most frequent class {result.majority:.1%}"
    )
    table = Table(box=None, header_style="bold", title="recall, worst first", title_justify="left")
    table.add_column("class")
    table.add_column("recall", justify="right")
    table.add_column("images", justify="right")
    totals = result.confusion.sum(axis=1)
    order = sorted(range(len(classes)), key=lambda i: (math.isnan(result.recall[i]), result.recall[i]))
    for index in order[:20]:
        recall = "–" if math.isnan(result.recall[index]) else f"{result.recall[index]:.1%}"
        table.add_row(escape(classes[index]), recall, f"{totals[index]:,}")
    if len(classes) > 20:
        table.caption = f"and {len(classes) - 20} more"
    screen.print(table)
    screen.print(_matrix(evaluation) if len(classes) <= MATRIX_CLASSES else _confusions(evaluation))
    for bad in evaluation.unreadable:
        console.print(f"left out: {escape(bad.path)}: {escape(bad.reason)}", style="yellow", soft_wrap=True)


def _matrix(evaluation: Evaluation) -> Table:
    table = Table(box=None, header_style="bold", title="confusion (rows true, columns predicted)", title_justify="left")
    table.add_column("")
    for name in evaluation.classes:
        table.add_column(escape(name), justify="right")
    for index, (name, row) in enumerate(zip(evaluation.classes, evaluation.result.confusion.tolist(), strict=True)):
        cells = [f"[bold]{n}[/]" if column == index else (str(n) if n else "·") for column, n in enumerate(row)]
        table.add_row(escape(name), *cells)
    return table


def _confusions(evaluation: Evaluation) -> Table:
    wrong = evaluation.result.confusion * (1 - np.eye(len(evaluation.classes), dtype=np.int64))
    table = Table(box=None, header_style="bold", title="most frequent confusions", title_justify="left")
    for name in ("true", "predicted", "images"):
        table.add_column(name)
    for flat in np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]:
        true, predicted = divmod(int(flat), len(evaluation.classes))
        if wrong[true, predicted]:
            names = escape(evaluation.classes[true]), escape(evaluation.classes[predicted])
            table.add_row(*names, str(wrong[true, predicted]))
    return table
