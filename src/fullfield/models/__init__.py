"""Models: the shared skeleton, one file a family, and the registry that timm shares."""

from fullfield.models import racnn
from fullfield.models.backbone import Backbone, Stage
from fullfield.models.registry import ModelInfo, ModelSpec, create_model, list_models, model_spec

__all__ = [
    "Backbone",
    "ModelInfo",
    "ModelSpec",
    "Stage",
    "create_model",
    "list_models",
    "model_spec",
    "racnn",
]
