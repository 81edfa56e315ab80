"""From a classifier's logits to `Prediction`; needs no PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fullfield.tasks.answers import Prediction

__all__ = ["label_answers", "softmax"]


def label_answers(paths: Sequence[Path], logits: NDArray[Any], classes: Sequence[str], top: int) -> list[Prediction]:
    """Return the likeliest classes of each image with their probabilities, best first; of ties the first in order.

    Args:
        paths: Of the B images.
        logits: (B, K) floating point.
        classes: The K names.
        top: At most so many are named.
    """
    shares = softmax(logits)
    order = np.argsort(-shares, axis=1, kind="stable")[:, :top]
    return [
        Prediction(path, tuple((classes[index], float(row[index])) for index in best))
        for path, row, best in zip(paths, shares, order, strict=True)
    ]


def softmax(logits: NDArray[Any]) -> NDArray[np.float32]:
    """Return the shares of (B, K) logits, each row adding up to 1; a row with NaN or positive infinity is NaN."""
    with np.errstate(invalid="ignore"):
        powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float32] = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares
