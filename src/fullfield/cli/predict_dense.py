"""What `fullfield predict` prints of detectors and segmenters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from rich.markup import escape
from rich.table import Table

__all__ = ["collected", "detection_table", "segmentation_table"]

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


def collected(predictions: Iterable[Any], rows: list[Any]) -> Iterator[Any]:
    """Pass segmentations on, one at a time, and keep of each what is printed: path, shares and error."""
    for prediction in predictions:
        rows.append((prediction.path, prediction.shares, prediction.error))
        yield prediction
