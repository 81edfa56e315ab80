"""Fullfield: vision backbones that see the whole image.

Importing it registers Fullfield's models with timm and loads no more than torch and timm. What needs more (the
trainer, for instance) is imported when it is first used. The functions mirror the commands one to one:
`fullfield.train(...)` is `fullfield train ...`, and `fullfield.measure.erf(...)` is `fullfield erf ...`.

Where PyTorch is not installed, what remains is what runs exported files: `fullfield.Predictor`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fullfield.lazy import TORCH, find
from fullfield.version import __version__

if TYPE_CHECKING:
    from fullfield import models, ops
    from fullfield.data.pack import pack
    from fullfield.deploy.export import export
    from fullfield.deploy.hub import from_pretrained, push
    from fullfield.deploy.optimize import optimize
    from fullfield.deploy.predictor import Predictor
    from fullfield.models.official import load_weights
    from fullfield.models.registry import ModelInfo, create_model, list_models
    from fullfield.models.weights import load, save
    from fullfield.tasks.evaluate_any import evaluate_any as eval  # noqa: A004
    from fullfield.tasks.evaluate_any import evaluate_any as evaluate
    from fullfield.tasks.predict_any import predict_any as predict
    from fullfield.train.run import train

__all__ = [
    "ModelInfo",
    "Predictor",
    "__version__",
    "create_model",
    "eval",
    "evaluate",
    "export",
    "from_pretrained",
    "list_models",
    "load",
    "load_weights",
    "models",
    "ops",
    "optimize",
    "pack",
    "predict",
    "push",
    "save",
    "train",
]

_HOMES = {
    "ModelInfo": "fullfield.models.registry",
    "Predictor": "fullfield.deploy.predictor",
    "convert": "fullfield.tasks.convert",
    "create_model": "fullfield.models.registry",
    "export": "fullfield.deploy.export",
    "from_pretrained": "fullfield.deploy.hub",
    "eval": "fullfield.tasks.evaluate_any:evaluate_any",
    "evaluate": "fullfield.tasks.evaluate_any:evaluate_any",
    "list_models": "fullfield.models.registry",
    "load": "fullfield.models.weights",
    "load_weights": "fullfield.models.official",
    "optimize": "fullfield.deploy.optimize",
    "pack": "fullfield.data.pack",
    "predict": "fullfield.tasks.predict_any:predict_any",
    "push": "fullfield.deploy.hub",
    "save": "fullfield.models.weights",
}
_ROOMS = frozenset({"app", "data", "deploy", "layers", "measure", "models", "ops", "tasks", "train"})


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"fullfield.{name}")
    return find(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_ROOMS})


try:
    import_module("fullfield.models")
except ModuleNotFoundError as error:
    if error.name not in TORCH:
        raise
