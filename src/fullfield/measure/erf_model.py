"""The model whose field is measured, and whether its weights were trained.

Of a detector or segmenter it is the net under its head, with the weights that it has there: the field of a head's
output would say more of the head than of the net. The effective field of random weights shows their initialisation (a
LayerScale of 1e-6 or a zeroed last norm hides a whole branch), so every result says what the weights are. For a module
that does not say where its weights come from the norms tell: training moves their statistics and scales off the values
at which they start.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fullfield.data import Preprocess
from fullfield.errors import ConfigError
from fullfield.models.registry import create_model, model_spec
from fullfield.tasks.model_file import is_model_file, load_model_file
from fullfield.tasks.open import OpenedDense, backbone_of, open_any
from fullfield.tasks.pretrained import published_preprocess
from fullfield.tasks.source import OpenedModel, pick_device

__all__ = ["MeasuredModel", "open_measured", "weights_of", "with_random_weights"]


@dataclass(frozen=True)
class MeasuredModel:
    """A model with its name, how it wants its images, and what its weights are."""

    name: str
    model: nn.Module
    preprocess: Preprocess
    weights: str
    """"trained", "random" or "unknown"."""
    is_backbone: bool = False
    """Whether it is the net of a detector or segmenter, which knows no classes; its name says so too."""

    @property
    def device(self) -> torch.device:
        """Where its parameters live."""
        return next(self.model.parameters(), torch.empty(0)).device

    @property
    def dtype(self) -> torch.dtype:
        """Of its parameters."""
        return next(self.model.parameters(), torch.empty(0)).dtype


def open_measured(
    model: str | Path | nn.Module | OpenedModel | OpenedDense | MeasuredModel,
    *,
    pretrained: bool = False,
    device: str = "auto",
    image_size: int | None = None,
) -> MeasuredModel:
    """Open what a user calls a model.

    Args:
        model: A module (used as it is, on its own device), a registered name, a run folder, a weights file, or
            "path/to/file.py:factory", see `load_model_file`. Of a run for detection or segmentation the backbone is
            taken.
        pretrained: For a registered name: fetch timm's weights.
        device: Of a model that is opened here: "auto", "cpu", "cuda", ...
        image_size: Attention nets of a fixed size are set to it, if they are opened here.

    Raises:
        CheckpointError: The path holds no usable weights.
        ModelNotFoundError: Neither a path nor a registered name.
        ConfigError: The device is not to be had here, or the file gives no model.
    """
    if isinstance(model, MeasuredModel):
        return model
    if isinstance(model, nn.Module):
        return MeasuredModel(_name_of(model), model, _preprocess_of(model), weights_of(model))
    if not isinstance(model, OpenedModel | OpenedDense) and is_model_file(model):
        module = load_model_file(model).to(pick_device(device))
        measured = MeasuredModel(Path(model).name, module, _preprocess_of(module), weights_of(module))
    else:
        if not isinstance(model, OpenedModel | OpenedDense):
            model = open_any(model, pretrained=pretrained, device=device)
        measured = _measured(model)
    resize = getattr(measured.model, "set_input_size", None)
    if image_size is not None and image_size != measured.preprocess.image_size and callable(resize):
        resize(img_size=(image_size, image_size))
    return measured


def _measured(opened: OpenedModel | OpenedDense) -> MeasuredModel:
    dense = isinstance(opened, OpenedDense)
    name = opened.name if opened.source == opened.name else f"{opened.name} ({Path(opened.source).name})"
    net = backbone_of(opened) if isinstance(opened, OpenedDense) else opened
    weights = "trained" if opened.trained else "random"
    return MeasuredModel(f"backbone of {name}" if dense else name, net.model, net.preprocess, weights, dense)


def with_random_weights(measured: MeasuredModel) -> MeasuredModel:
    """Return the same architecture with fresh random weights, to compare with.

    Raises:
        ConfigError: How the model was made is not known.
    """
    spec = model_spec(measured.model)
    if spec is None:
        raise ConfigError(
            f"{measured.name} was not made by name, so it can't be made again with random weights; give a model with"
            " random weights beside it"
        )
    model = create_model(spec.name, **spec.arguments).to(measured.device, measured.dtype).eval()
    resize = getattr(model, "set_input_size", None)
    grid = getattr(getattr(measured.model, "patch_embed", None), "img_size", None)
    if callable(resize) and grid is not None:
        resize(img_size=grid)
    return replace(measured, model=model, weights="random")


def weights_of(model: nn.Module) -> str:
    """Return "trained", "random", or "unknown" for a model without norms that tells nothing.

    A model that loaded weights says so in `loaded_from` (our loader of official checkpoints). Otherwise it is trained
    if a norm has left its start: running means at 0, scales all alike.
    """
    if getattr(model, "loaded_from", None) is not None:
        return "trained"
    norms = [module for module in model.modules() if _is_norm(module)]
    if not norms:
        return "unknown"
    return "trained" if any(_has_moved(norm) for norm in norms) else "random"


def _is_norm(module: nn.Module) -> bool:
    scale = getattr(module, "weight", None)
    kind = type(module).__name__.lower()
    return ("norm" in kind or kind.startswith("bn")) and isinstance(scale, torch.Tensor) and scale.ndim == 1


@torch.no_grad()
def _has_moved(norm: nn.Module) -> bool:
    scale = norm.weight
    assert isinstance(scale, torch.Tensor)  # noqa: S101 - for the type checker
    if isinstance(norm, _BatchNorm) and norm.running_mean is not None and bool(norm.running_mean.count_nonzero()):
        return True
    return bool((scale != scale[0]).any())


def _name_of(model: nn.Module) -> str:
    spec = model_spec(model)
    if spec is not None:
        return spec.name
    config = getattr(model, "pretrained_cfg", None) or {}
    return str(config.get("architecture") or type(model).__name__)


def _preprocess_of(model: nn.Module) -> Preprocess:
    """Return what the model's configuration says, or else ImageNet's, for colour or for grey.

    Images are read with 3 channels or 1; a model of another number takes tensors.
    """
    first = next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)
    channels = int(getattr(model, "in_chans", first))
    if channels in (1, 3) and getattr(model, "pretrained_cfg", None):
        return published_preprocess(model)
    return Preprocess(channels=1 if channels == 1 else 3)
