"""Models: the shared skeleton, one file a family, and the registry that timm shares.

The room can be called: `fullfield.models("racnn*")` lists models, as `fullfield models "racnn*"` does.
"""

from fullfield.callable_room import make_callable
from fullfield.models import hornet, moganet, racnn, replknet, slak, unireplknet, van
from fullfield.models.backbone import Backbone, Stage
from fullfield.models.registry import ModelInfo, ModelSpec, create_model, list_models, model_spec

__all__ = [
    "Backbone",
    "ModelInfo",
    "ModelSpec",
    "Stage",
    "create_model",
    "hornet",
    "list_models",
    "model_spec",
    "moganet",
    "racnn",
    "replknet",
    "slak",
    "unireplknet",
    "van",
]

make_callable(__name__, "fullfield.models.registry:list_models")
