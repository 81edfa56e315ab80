"""Opening what a user calls a model: a run folder, a checkpoint file, or a registered name.

All three give a model with the names of its classes and the preprocessing that it expects, so that everything
after training (`eval`, `predict`, ...) takes any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from fullfield.data import Preprocess
from fullfield.errors import CheckpointError, ConfigError
from fullfield.models.registry import create_model
from fullfield.models.weights import find_weights, load_checkpoint
from fullfield.tasks.pretrained import published_classes, published_preprocess

__all__ = ["OpenedModel", "checkpoint_metadata", "is_registered_name", "open_model", "pick_device"]


@dataclass(frozen=True)
class OpenedModel:
    """A model ready to be used, in eval mode."""

    name: str
    model: nn.Module
    classes: tuple[str, ...]
    preprocess: Preprocess
    trained: bool
    """Whether the weights were trained by anyone; random weights are good for measuring only."""
    source: str
    task: str = "classify"


def checkpoint_metadata(classes: tuple[str, ...], preprocess: Preprocess, **more: Any) -> dict[str, Any]:
    """Return what a classification checkpoint carries beside its weights; `open_model` reads it back."""
    return {"task": "classify", "classes": list(classes), "preprocess": preprocess.to_dict(), **more}


def open_model(source: str | Path, *, pretrained: bool = False, device: str = "auto") -> OpenedModel:
    """Open a run folder, a checkpoint file, or a registered model.

    Args:
        source: A folder that `fullfield train` made, a .safetensors file, or a name of `fullfield models`.
        pretrained: For a registered name: fetch timm's weights. Without them the weights are random.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", "mps".

    Raises:
        CheckpointError: The path holds no usable weights.
        ModelNotFoundError: Neither a path nor a registered name.
        ConfigError: The device is not to be had here.
    """
    where = pick_device(device)
    if is_registered_name(source):
        return _open_registered(str(source), pretrained, where)
    checkpoint = load_checkpoint(find_weights(source))
    found = checkpoint.metadata
    if "classes" not in found or "preprocess" not in found:
        raise CheckpointError(
            f"{checkpoint.path} has no class names or preprocessing; use a checkpoint that `fullfield train` wrote"
        )
    return OpenedModel(
        checkpoint.spec.name,
        checkpoint.model.to(where),
        tuple(found["classes"]),
        Preprocess.from_dict(found["preprocess"]),
        trained=True,
        source=str(source),
    )


def is_registered_name(source: str | Path) -> bool:
    """Whether a source is meant as the name of a model; whether there is such a model is not asked."""
    path = Path(source)
    return not path.exists() and len(path.parts) == 1 and (path.suffix == "" or path.name in timm.list_pretrained())


def _open_registered(name: str, pretrained: bool, device: torch.device) -> OpenedModel:
    try:
        model = create_model(name, pretrained=pretrained).eval().to(device)
    except (RuntimeError, OSError) as error:
        if not pretrained:
            raise
        raise CheckpointError(no_pretrained(name, error)) from error
    classes = published_classes(int(getattr(model, "num_classes", 0)))
    return OpenedModel(name, model, classes, published_preprocess(model), trained=pretrained, source=name)


def no_pretrained(name: str, error: Exception) -> str:
    """Return the message for weights of timm's that could not be had."""
    return (
        f"the pretrained weights of {name} can't be had ({str(error).splitlines()[0]}). Check the network and"
        " `fullfield models`, or leave out --pretrained"
    )


def pick_device(device: str) -> torch.device:
    """Return the device to compute on.

    Raises:
        ConfigError: It does not exist here, or there is no such kind.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
        torch.zeros(1, device=picked).item()  # "meta" exists, and holds no numbers
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {device!r} can't be used here ({reason}); try --device auto or cpu") from error
    return picked
