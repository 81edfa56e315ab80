"""What a run starts from: the model with its weights, random or given, and the preprocessing that fits them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import timm.data
import torch
from rich.markup import escape
from torch import nn

from fullfield.data import ImageData, Preprocess
from fullfield.errors import ConfigError
from fullfield.models.registry import create_model, model_spec
from fullfield.models.weights import load, load_checkpoint
from fullfield.progress import console
from fullfield.train.distill import open_teacher
from fullfield.train.freeze import freeze
from fullfield.train.image_sizes import side_at
from fullfield.train.memory import available_bytes, foresee
from fullfield.train.settings import TrainSettings
from fullfield.train.tracking import check_loggers

__all__ = [
    "check_start",
    "checkpoint_gradients",
    "fit_to_weights",
    "resumed_model",
    "start_model",
    "start_of",
    "start_preprocess",
]

ROOMY_PIXEL_BYTES = 20_000
"""More than a training step keeps for each pixel of an image; the hungriest nets here keep about 4,000."""
ROOMY_WEIGHT_BYTES = 40
"""More than a weight takes with its gradient, average and optimiser state."""
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


def resumed_model(settings: TrainSettings, name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Return the model of a state, in training mode; its weights come with the state.

    Args:
        settings: Of the run.
        name: Of the model.
        arguments: Of `create_model`, as the state has them.

    Raises:
        ConfigError: The model can't be built.
    """
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
    arguments = {k: v for k, v in arguments.items() if k not in (*_DROP_RATES, "pretrained")}
    return _create(name, **arguments, **_drop_rates(settings)).train()


def check_start(
    settings: TrainSettings,
    model: nn.Module,
    preprocess: Preprocess,
    classes: Sequence[str],
    device: torch.device,
    processes: int,
) -> None:
    """Find out before the first step what would stop it, and whether the memory will do.

    Too little memory is said and not refused: it is foreseen, not known.

    Raises:
        ConfigError: The sizes do not grow, a part to freeze or a logger is unknown, or the teacher can't teach.
        MissingExtraError: A logger's package is not installed.
    """
    check_loggers(settings.logger)
    if settings.image_size_start is not None:
        side_at(0, settings.epochs or 1, settings.image_size_start, preprocess.image_size)
    model = copy.deepcopy(model) if settings.freeze or settings.grad_checkpointing else model
    if settings.freeze:
        freeze(model, settings.freeze)
    if settings.grad_checkpointing:
        checkpoint_gradients(model)
    if settings.teacher:
        open_teacher(settings.teacher, classes=classes, preprocess=preprocess)
    batch = (settings.batch_size or 32) // (processes * settings.accumulate)
    there = available_bytes(device)
    weights = sum(p.numel() for p in model.parameters())
    if there is None or batch * preprocess.image_size**2 * ROOMY_PIXEL_BYTES + weights * ROOMY_WEIGHT_BYTES < there:
        return  # counting takes seconds
    found = foresee(
        model,
        batch=batch,
        image_size=preprocess.image_size,
        channels=preprocess.channels,
        ema=bool(settings.ema),
        mixed=settings.precision in ("bf16", "16") or (settings.precision == "auto" and device.type == "cuda"),
        checkpointing=settings.grad_checkpointing,
        world_size=processes,
        device=device,
    )
    advice = found.advice(processes * settings.accumulate) if found else ""
    if advice:
        console.print(f"[yellow]A training step {escape(advice)}[/]", soft_wrap=True)
    elif found:
        console.print(f"A training step needs {found.summary()}", style="dim", soft_wrap=True)


def checkpoint_gradients(model: nn.Module) -> None:
    """Switch on gradient checkpointing (Chen et al. 2016): blocks are computed again in the backward pass.

    Raises:
        ConfigError: The model has none.
    """
    switch = getattr(model, "set_grad_checkpointing", None)
    try:
        if not callable(switch):
            raise TypeError("it has no set_grad_checkpointing")
        switch(True)
    except (AssertionError, NotImplementedError, TypeError) as error:  # timm's nets without it assert
        raise ConfigError(
            f"{type(model).__name__} has no gradient checkpointing ({error}); leave out --grad-checkpointing, and use"
            " --accumulate 2 to need less memory"
        ) from error


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
    empty = sorted(key for key, value in arguments.items() if value is None and key != "img_size")
    if empty:  # timm drops them without a word, and the model has its default
        raise ConfigError(
            f"model argument {', '.join(empty)} is null; timm ignores that, so give a value or leave it out"
        )
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
