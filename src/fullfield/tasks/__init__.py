"""Tasks: a model with its loss and its metric, and what one does with a trained one: evaluate, predict."""

from fullfield.tasks.classify import ClassificationTask
from fullfield.tasks.evaluate import Evaluation, ImageResult, evaluate
from fullfield.tasks.metrics import ClassificationMetrics, ClassificationResult
from fullfield.tasks.predict import Prediction, predict, save_predictions
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
    "evaluate",
    "open_model",
    "predict",
    "save_predictions",
]
