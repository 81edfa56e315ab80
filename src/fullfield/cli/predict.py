"""`fullfield predict RUN IMAGE...`: a table, and with --out files and drawn pictures."""

from __future__ import annotations

from dataclasses import dataclass

import tyro
from rich.markup import escape
from rich.table import Table

from fullfield.cli.parse import parse
from fullfield.files import write_json
from fullfield.progress import console, output
from fullfield.tasks.predict import predict, save_predictions
from fullfield.tasks.source import open_model

__all__ = ["PredictArguments", "run"]


@dataclass(frozen=True)
class PredictArguments:
    """Name what is in images."""

    run: str
    """Run folder, checkpoint file, or registered model."""
    images: tyro.conf.Positional[tuple[str, ...]]
    """Image files and folders."""
    top: int = 3
    """How many classes to name for each image."""
    out: str | None = None
    """Write predictions.csv, predictions.json and a drawn picture an image into this folder."""
    draw: bool = True
    """With --out: draw the pictures."""
    json: str | None = None
    """Write the predictions to this file."""
    batch_size: int = 16
    """Images at a time."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    pretrained: bool = False
    """For a registered model: fetch timm's weights."""


def run(argv: list[str]) -> int:
    """Predict and print; 1 if an image could not be read."""
    arguments = parse(PredictArguments, "predict", argv)
    opened = open_model(arguments.run, pretrained=arguments.pretrained, device=arguments.device)
    if not opened.trained:
        console.print("the weights are random: the answers mean nothing (--pretrained fetches timm's)", style="red")
    predictions = predict(opened, arguments.images, top=arguments.top, batch_size=arguments.batch_size)
    table = Table(box=None, show_header=False)
    for prediction in predictions:
        if prediction.labels:
            labels = "   ".join(f"{escape(name)} {share:.1%}" for name, share in prediction.labels)
            table.add_row(escape(str(prediction.path)), labels)
    output().print(table)
    failed = [p for p in predictions if p.error]
    for prediction in failed:
        console.print(escape(prediction.error or ""), style="red", soft_wrap=True)
    if arguments.out:
        folder = save_predictions(predictions, arguments.out, draw=arguments.draw)
        console.print(f"written to {escape(str(folder))}", soft_wrap=True)
    if arguments.json:
        write_json(arguments.json, [prediction.to_dict() for prediction in predictions])
    return 1 if failed else 0
