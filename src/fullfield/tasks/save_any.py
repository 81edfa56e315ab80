"""Write what a model of any task predicts into a folder; needs no PyTorch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["save_any"]


def save_any(opened: Any, predictions: Iterable[Any], folder: str | Path, *, draw: bool = True) -> Path:
    """Write predictions into a folder, in the form of their task, and return it.

    Args:
        opened: What made them, with its task, and of dense models with classes and colours: a `Predictor`, or what
            `open_any` returned.
        predictions: As `fullfield.predict` returned them; each of a segmenter's is written before the next is asked
            for.
        folder: Made if it does not exist; files of those names are replaced.
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
