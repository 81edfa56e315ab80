"""From predictions to the plain JSON values that a client gets; runs in a worker, needs no PyTorch."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from fullfield.tasks.segmentation.answers import label_image

__all__ = ["to_answer"]


def to_answer(task: str, prediction: Any, options: Mapping[str, Any], colours: Sequence[Any]) -> dict[str, Any]:
    """Return one image's answer.

    Args:
        task: "classify", "detect" or "segment".
        prediction: Of that task, made with at least as many classes and as low a threshold as the options ask for.
        options: "top", "threshold" and "mask" of the request.
        colours: Of a segmenter's classes.
    """
    return _ANSWERS[task](prediction, options, colours)


def _labels(prediction: Any, options: Mapping[str, Any], _: Sequence[Any]) -> dict[str, Any]:
    best = prediction.labels[: options["top"]]
    return {"labels": [{"class": name, "probability": float(share)} for name, share in best]}


def _detections(prediction: Any, options: Mapping[str, Any], _: Sequence[Any]) -> dict[str, Any]:
    height, width = prediction.size
    found = []
    for one in prediction.detections:
        if one.score < options["threshold"]:
            continue
        row: dict[str, Any] = {"class": one.name, "score": float(one.score), "box": [float(edge) for edge in one.box]}
        if options["mask"] == "rle":
            row["mask"] = None if one.mask is None else {**one.mask}
        found.append(row)
    return {"size": {"width": int(width), "height": int(height)}, "detections": found}


def _shares(prediction: Any, options: Mapping[str, Any], colours: Sequence[Any]) -> dict[str, Any]:
    height, width = prediction.labels.shape
    answer: dict[str, Any] = {
        "size": {"width": int(width), "height": int(height)},
        "shares": [{"class": name, "share": float(share)} for name, share in prediction.shares],
    }
    if options["mask"] == "png":
        file = io.BytesIO()
        label_image(prediction.labels, colours).save(file, format="PNG")
        answer["mask"] = base64.b64encode(file.getvalue()).decode("ascii")
    return answer


_ANSWERS = {"classify": _labels, "detect": _detections, "segment": _shares}
