"""`fullfield predict RUN|FILE IMAGE...`: a table, and with --out files and drawn pictures, for a model of any task.

An exported file needs no PyTorch here, so nothing that does is imported before a run is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import tyro
from rich.markup import escape
from rich.table import Table

from fullfield.cli.parse import parse
from fullfield.cli.predict_dense import collected, detection_table, segmentation_table
from fullfield.deploy.engine import is_exported
from fullfield.deploy.predictor import Predictor, missing_torch
from fullfield.errors import ConfigError
from fullfield.files import write_json
from fullfield.progress import console, output
from fullfield.tasks.save_any import save_any

__all__ = ["PredictArguments", "run"]


@dataclass(frozen=True)
class PredictArguments:
    """Name, find or outline what is in images, as the run was trained to."""

    run: str
    """Run folder, checkpoint file, registered model, or exported file (.onnx, .xml, .pt2, .pte, .mlpackage)."""
    images: tyro.conf.Positional[tuple[str, ...]]
    """Image files and folders."""
    top: int = 3
    """Classifiers: how many classes to name for each image."""
    threshold: float = 0.3
    """Detectors: leave out objects with a lower score."""
    out: str | None = None
    """Write predictions (CSV and JSON, of objects in COCO's form; of pixels PNG label maps) and a drawn picture an
    image into this folder."""
    draw: bool = True
    """With --out: draw the pictures."""
    json: str | None = None
    """Write the predictions to this file."""
    batch_size: int | None = None
    """Images at a time; by default 16, of detectors 4."""
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
    """Predict and print; 1 if an image could not be read."""
    arguments = parse(PredictArguments, "predict", argv)
    with _exported(arguments) if is_exported(arguments.run) else nullcontext() as predictor:
        opened = predictor or _opened(arguments)
        if not opened.trained:
            console.print("the weights are random: the answers mean nothing (--pretrained fetches timm's)", style="red")
        predictions = _predictions(arguments, opened)
        return (_segment if opened.task == "segment" else _list)(arguments, opened, predictions)


def _exported(arguments: PredictArguments) -> Predictor:
    if arguments.window is not None or tuple(arguments.scales) != (1.0,) or arguments.flip:
        raise ConfigError(
            f"--window, --scales and --flip are for segmenters in PyTorch; {arguments.run} is an exported file, which"
            " looks at whole images once"
        )
    return Predictor(arguments.run, device=arguments.device, pretrained=arguments.pretrained)


def _opened(arguments: PredictArguments) -> Any:
    try:
        from fullfield.tasks.open import open_any
    except ModuleNotFoundError as error:
        raise missing_torch(arguments.run, error) from error
    return open_any(arguments.run, pretrained=arguments.pretrained, device=arguments.device)


def _predictions(arguments: PredictArguments, opened: Any) -> Any:
    common: dict[str, Any] = {
        "top": arguments.top,
        "threshold": arguments.threshold,
        "batch_size": arguments.batch_size,
    }
    if isinstance(opened, Predictor):
        return opened.predict(arguments.images, **common)
    from fullfield.tasks.predict_any import predict_any

    options: dict[str, Any] = {"window": arguments.window, "scales": arguments.scales, "flip": arguments.flip}
    return predict_any(opened, arguments.images, **common, **options)


def _list(arguments: PredictArguments, opened: Any, predictions: list[Any]) -> int:
    """Print and write what a classifier or detector says."""
    output().print(detection_table(predictions) if opened.task == "detect" else _labels(predictions))
    failed = [p.error for p in predictions if p.error]
    _print_failures(failed)
    if arguments.out:
        folder = save_any(opened, predictions, arguments.out, draw=arguments.draw)
        console.print(f"written to {escape(str(folder))}", soft_wrap=True)
    if arguments.json and opened.task == "detect":
        from fullfield.tasks.detection.coco_form import coco_document

        write_json(arguments.json, coco_document(predictions, opened.classes))
    elif arguments.json:
        write_json(arguments.json, [prediction.to_dict() for prediction in predictions])
    return 1 if failed else 0


def _segment(arguments: PredictArguments, opened: Any, predictions: Iterable[Any]) -> int:
    """Print and write what a segmenter says, one image at a time: label maps of many would fill the memory."""
    rows: list[Any] = []
    passing = collected(predictions, rows)
    if arguments.out:
        folder = save_any(opened, passing, arguments.out, draw=arguments.draw)
        console.print(f"written to {escape(str(folder))}", soft_wrap=True)
    else:
        for _ in passing:
            pass
    output().print(segmentation_table(rows))
    failed = [error for _, _, error in rows if error]
    _print_failures(failed)
    if arguments.json:
        document = [{"path": str(path), "shares": dict(shares), "error": error} for path, shares, error in rows]
        write_json(arguments.json, document)
    return 1 if failed else 0


def _labels(predictions: list[Any]) -> Table:
    table = Table(box=None, show_header=False)
    for prediction in predictions:
        if prediction.labels:
            labels = "   ".join(f"{escape(name)} {share:.1%}" for name, share in prediction.labels)
            table.add_row(escape(str(prediction.path)), labels)
    return table


def _print_failures(errors: list[str]) -> None:
    for error in errors:
        console.print(escape(error), style="red", soft_wrap=True)
