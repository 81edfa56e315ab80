"""What a run starts from: the model with its weights, random or given, and the preprocessing that fits them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import timm.data
import torch
from torch import nn

from fullfield.data import ImageData, Preprocess
from fullfield.errors import ConfigError
from fullfield.models.registry import create_model, model_spec
from fullfield.models.weights import load, load_checkpoint
from fullfield.train.checkpoint import Position
from fullfield.train.settings import TrainSettings

__all__ = ["fit_to_weights", "resumed_model", "start_model", "start_of", "start_preprocess"]

_DROP_RATES = ("drop_path_rate", "drop_rate")


def fit_to_weights(settings: TrainSettings, weights: str) -> TrainSettings:
    """Return the settings with the model, and if left open the image size, of the weights to start from.

    Raises:
        ConfigError: The settings ask for another model.
    """
    checkpoint = load_checkpoint(weights)
    spec = checkpoint.spec
    asked = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.model_arguments().items()}  # as in JSON
    if settings.model not in (None, spec.name) or any(spec.arguments.get(k) != v for k, v in asked.items()):
        raise ConfigError(
            f"{weights} holds {spec.name} with {spec.arguments}, and its architecture can't be changed; leave out"
            " model and model_args, or weights"
        )
    image_size = settings.image_size or checkpoint.metadata.get("preprocess", {}).get("image_size")
    return replace(settings, model=spec.name, image_size=image_size)


def start_of(settings: TrainSettings, data: ImageData) -> tuple[nn.Module, Preprocess]:
    """Return the model and the preprocessing that a new run starts from; the seed fixes random weights.

    Raises:
        ConfigError: The model can't be built with its arguments.
        CheckpointError: The weights can't be used.
    """
    torch.manual_seed(settings.seed)
    model = start_model(settings, settings.weights, data)
    return model, start_preprocess(settings, model)


def start_model(settings: TrainSettings, weights: str | None, data: ImageData) -> nn.Module:
    """Return the model to train, in training mode.

    Args:
        settings: Fitted.
        weights: A checkpoint or run to start from, or None for new (or timm's) weights.
        data: Its classes are the model's.

    Raises:
        ConfigError: The model can't be built with its arguments.
        CheckpointError: The weights can't be used.
    """
    return _load_model(settings, weights, data) if weights else _build_model(settings, data)


def resumed_model(settings: TrainSettings, position: Position) -> nn.Module:
    """Return the model of a state, in training mode; its weights come with the state.

    Args:
        settings: Of the run.
        position: Of the state.

    Raises:
        ConfigError: The model can't be built.
    """
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in position.model_arguments.items()}
    arguments = {k: v for k, v in arguments.items() if k not in (*_DROP_RATES, "pretrained")}
    return _create(position.model, **arguments, **_drop_rates(settings)).train()


def start_preprocess(settings: TrainSettings, model: nn.Module) -> Preprocess:
    """Return the preprocessing of a run: ImageNet's mean and deviation, or those that given weights were trained with.

    Args:
        settings: Fitted.
        model: As `start_model` returned it.
    """
    size, channels = settings.image_size or 224, int(getattr(model, "in_chans", 3))
    if settings.weights:
        stored = load_checkpoint(settings.weights).metadata.get("preprocess")
        if stored:
            return replace(Preprocess.from_dict(stored), image_size=size)
    if settings.pretrained:
        cfg = timm.data.resolve_model_data_config(model)
        mean, std, filter_name = tuple(cfg["mean"]), tuple(cfg["std"]), cfg["interpolation"]
        return Preprocess(size, cfg["crop_pct"], mean, std, filter_name, channels)
    return Preprocess(image_size=size, channels=channels)


def _load_model(settings: TrainSettings, weights: str, data: ImageData) -> nn.Module:
    """Return the model of a checkpoint, with this run's rates of dropping."""
    model = load(weights, num_classes=len(data.classes), reset_classifier=settings.reset_classifier)
    spec = model_spec(model)
    if spec is None or {k: v for k, v in spec.arguments.items() if k in _DROP_RATES and v} == _drop_rates(settings):
        return model.train()
    arguments = {k: v for k, v in spec.arguments.items() if k not in _DROP_RATES}
    changed = _create(spec.name, **arguments, **_drop_rates(settings))
    changed.load_state_dict(model.state_dict())
    return changed.train()


def _build_model(settings: TrainSettings, data: ImageData) -> nn.Module:
    name = settings.model or "racnn_pico"
    arguments = settings.model_arguments() | _drop_rates(settings)
    cfg = timm.get_pretrained_cfg(name.partition(".")[0])  # without the tag, which may not exist
    if cfg is not None and cfg.fixed_input_size:
        arguments.setdefault("img_size", settings.image_size)
    if settings.pretrained:
        arguments["pretrained"] = True
    return _create(name, **{"num_classes": len(data.classes), **arguments})


def _create(name: str, **arguments: Any) -> nn.Module:
    try:
        return create_model(name, **arguments)
    except (TypeError, AssertionError, RuntimeError, OSError) as error:
        raise ConfigError(
            f"{name} can't be built with {arguments}: {str(error).splitlines()[0].rstrip('.')}. See its arguments in"
            " the docs"
        ) from error


def _drop_rates(settings: TrainSettings) -> dict[str, float]:
    """Return the arguments of `create_model` for stochastic depth and dropout, where they are on."""
    rates = zip(_DROP_RATES, (settings.drop_path, settings.drop_rate), strict=True)
    return {name: rate for name, rate in rates if rate}
