"""What `fullfield predict` prints of detectors and segmenters, and writes of models of any task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

__all__ = ["collected", "detection_table", "save_answers", "segmentation_table"]

SHARES = 4  # classes named for an image


def detection_table(predictions: Iterable[Any]) -> Table:
    """Return one row an image: how many objects of which class, and the surest score of each."""
    table = Table(box=None, show_header=False)
    for prediction in predictions:
        if prediction.error:
            continue
        counts = Counter(one.name for one in prediction.detections)
        best: dict[str, float] = {}
        for one in prediction.detections:
            best[one.name] = max(best.get(one.name, 0.0), one.score)
        words = "   ".join(f"{escape(name)} {count} (up to {best[name]:.0%})" for name, count in counts.most_common())
        table.add_row(escape(str(prediction.path)), words or "nothing")
    return table


def segmentation_table(rows: Iterable[Any]) -> Table:
    """Return one row an image: the classes with the largest shares of its pixels."""
    table = Table(box=None, show_header=False)
    for path, shares, error in rows:
        if not error:
            words = "   ".join(f"{escape(name)} {share:.1%}" for name, share in shares[:SHARES])
            table.add_row(escape(str(path)), words)
    return table


def save_answers(opened: Any, predictions: Iterable[Any], folder: str, *, draw: bool) -> Path:
    """Write predictions into a folder, in the form of their task, and return it.

    Args:
        opened: What made them, with its task, and of dense models with classes and colours: a `Predictor`, or what
            `open_any` returned.
        predictions: Each of a segmenter's is written before the next is asked for.
        folder: Made if it does not exist.
        draw: Whether to draw pictures.

    Raises:
        RunError: The folder can't be written or the disk is full.
    """
    if opened.task == "classify":
        from fullfield.tasks.answers import save_predictions

        return save_predictions(list(predictions), folder, draw=draw)
    if opened.task == "detect":
        from fullfield.tasks.detection.answers import save_detection_predictions

        return save_detection_predictions(list(predictions), folder, classes=opened.classes, draw=draw)
    from fullfield.tasks.segmentation.answers import save_segmentation

    return save_segmentation(predictions, folder, classes=opened.classes, colours=opened.colours, draw=draw)


def collected(predictions: Iterable[Any], rows: list[Any]) -> Iterator[Any]:
    """Pass segmentations on, one at a time, and keep of each what is printed: path, shares and error."""
    for prediction in predictions:
        rows.append((prediction.path, prediction.shares, prediction.error))
        yield prediction
