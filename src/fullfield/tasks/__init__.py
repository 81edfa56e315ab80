"""Tasks: a model with its loss and its metric, and what one does with a trained one.

The functions are `fullfield.eval` and `fullfield.predict`; here those names are the modules.
"""

from fullfield.tasks.classify import ClassificationTask
from fullfield.tasks.evaluate import Evaluation, ImageResult
from fullfield.tasks.metrics import ClassificationMetrics, ClassificationResult
from fullfield.tasks.predict import Prediction, save_predictions
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
