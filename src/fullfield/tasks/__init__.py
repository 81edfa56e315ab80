"""Tasks: a model with its loss and its metric, and what one does with a trained one.

The functions are `fullfield.eval` and `fullfield.predict`; here those names are the modules.
"""

from typing import TYPE_CHECKING, Any

from fullfield.lazy import find

if TYPE_CHECKING:
    from fullfield.tasks.answers import Prediction, save_predictions
    from fullfield.tasks.classify import ClassificationTask
    from fullfield.tasks.evaluate import Evaluation, ImageResult
    from fullfield.tasks.metrics import ClassificationMetrics, ClassificationResult
    from fullfield.tasks.run_folder import RunFolder
    from fullfield.tasks.source import OpenedModel, open_model

__all__ = [
    "ClassificationMetrics",
    "ClassificationResult",
    "ClassificationTask",
    "Evaluation",
    "ImageResult",
    "OpenedModel",
    "Prediction",
    "RunFolder",
    "open_model",
    "save_predictions",
]

_HOMES = {
    "Prediction": "fullfield.tasks.answers",
    "save_predictions": "fullfield.tasks.answers",
    "ClassificationTask": "fullfield.tasks.classify",
    "Evaluation": "fullfield.tasks.evaluate",
    "ImageResult": "fullfield.tasks.evaluate",
    "ClassificationMetrics": "fullfield.tasks.metrics",
    "ClassificationResult": "fullfield.tasks.metrics",
    "RunFolder": "fullfield.tasks.run_folder",
    "OpenedModel": "fullfield.tasks.source",
    "open_model": "fullfield.tasks.source",
}


def __getattr__(name: str) -> Any:
    return find(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
