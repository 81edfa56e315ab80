"""What training detectors and segmenters has in common: whole models on a backbone, and where their weights begin."""

from __future__ import annotations

import copy
import json
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import timm.data
import torch
from timm import get_pretrained_cfg
from torch import nn

from fullfield.data.dense import DensePreprocess
from fullfield.errors import CheckpointError, ConfigError
from fullfield.models.weights import Checkpoint, load_checkpoint
from fullfield.tasks.dense_file import DenseCheckpoint, build_dense, dense_metadata, load_dense, save_dense, task_of
from fullfield.train.freeze import Frozen, freeze
from fullfield.train.kinds.kind import Kind, Start, count_frozen
from fullfield.train.settings import CLASSIFY_SETTINGS, TrainSettings
from fullfield.train.start import checkpoint_gradients
from fullfield.train.tracking import check_loggers

__all__ = ["DenseKind", "Fitting"]

_WORTH_TAKING = 2000  # steps


class Fitting:
    """Settings that are filled in one by one, each with its reason.

    Args:
        settings: As given.
    """

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings
        self.notes: list[str] = []

    def fit(self, name: str, value: Any, why: str) -> None:
        """Set what was left open; what was given stays."""
        if getattr(self.settings, name) in (None, ()):
            self.settings = replace(self.settings, **{name: value})
            self.notes.append(f"{name.replace('_', ' ')} {value}: {why}")

    def fit_model(self, device: torch.device) -> None:
        """Fit the net, and of RaCNN from random weights the scale of its branches.

        Without it a run on nuclei of two kinds of stain had activations that grew from block to block on the bright
        images, and overflowed in evaluation; with it the same run learned.
        """
        where = "a GPU" if device.type != "cpu" else "a CPU"
        size = "racnn_tiny" if device.type != "cpu" else "racnn_pico"
        self.fit("model", size, f"a size that trains well on {where}")
        s = self.settings
        if (s.model or "").startswith("racnn") and not s.weights:
            self.fit("model_args", ("layer_scale=0.1",), "keeps small and mixed batches from overflowing")

    def fit_schedule(self, images: int, batch: int, rate: float, device: torch.device) -> None:
        """Fit batch size, epochs, learning rate and readers.

        Args:
            images: Training images.
            batch: Images a step.
            rate: Peak learning rate of AdamW for 16 images a step.
            device: Where.
        """
        where = "a GPU" if device.type != "cpu" else "a CPU"
        self.fit("batch_size", batch, f"{images:,} training images on {where}")
        used = self.settings.batch_size or batch
        steps = max(1, images // used)
        self.fit("epochs", min(max(round(_WORTH_TAKING / steps), 12), 100), f"about {_WORTH_TAKING:,} steps")
        given = bool(self.settings.weights or self.settings.pretrained)
        rate *= 1.0 if not given else 0.25
        quarter = ", a quarter of it from given weights" if given else ""
        self.fit("lr", float(f"{rate * (used / 16) ** 0.5:.2g}"), f"for a batch of {used}{quarter}")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
        gpu = device.type != "cpu"
        self.fit("workers", min(8, cores - 1) if gpu else cores // 8, f"{cores} processor cores, training on {where}")


class DenseKind(Kind):
    """Detection or segmentation."""

    foreign: ClassVar[tuple[str, ...]] = CLASSIFY_SETTINGS

    def check_settings(self, settings: TrainSettings) -> None:
        """Refuse settings of other tasks, and what dense models can't do yet."""
        super().check_settings(settings)
        if settings.strategy == "fsdp":
            raise ConfigError(f"--strategy fsdp does not divide the weights of --task {self.name}; use --strategy ddp")

    @abstractmethod
    def preprocess(
        self, settings: TrainSettings, mean: Sequence[float], std: Sequence[float], channels: int
    ) -> DensePreprocess:
        """Return how images are prepared in a run."""

    def more_metadata(self, data: Any) -> dict[str, Any]:
        """Return what else goes beside the weights."""
        del data
        return {}

    def with_weights(self, settings: TrainSettings) -> TrainSettings:
        """Take the net, and of a model for the same task the head too, of given weights."""
        if not settings.weights:
            return settings
        found = _load(settings.weights)
        name = found.spec.name if isinstance(found, Checkpoint) else found.model.backbone.name
        if settings.model not in (None, name):
            raise ConfigError(f"{settings.weights} holds {name}, not {settings.model}; leave out model, or weights")
        if isinstance(found, DenseCheckpoint) and found.task == self.name:
            head = found.metadata["head"]
            if settings.head in (None, head) and not settings.head_args:  # what was fitted instead might not fit it
                given = found.metadata["head_arguments"]
                settings = replace(settings, head_args=tuple(f"{k}={json.dumps(v)}" for k, v in given.items()))
            settings = replace(settings, head=settings.head or head)
        return replace(settings, model=name)

    def start(self, settings: TrainSettings, data: Any) -> Start:
        """Return a new model, with the weights given for its net or for the whole of it."""
        torch.manual_seed(settings.seed)
        arguments: dict[str, Any] = dict(settings.model_arguments())
        mean, std, channels = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD, 3
        found = _load(settings.weights) if settings.weights else None
        if isinstance(found, Checkpoint):
            arguments = _kept(found.spec.arguments) | arguments
        elif found is not None:
            arguments = _kept(found.model.backbone.arguments) | arguments
        if found is not None and "preprocess" in found.metadata:
            stored = found.metadata["preprocess"]
            mean, std, channels = stored["mean"], stored["std"], stored["channels"]
        elif settings.pretrained:
            cfg = get_pretrained_cfg((settings.model or "").partition(".")[0])
            if cfg is not None:
                mean, std, arguments["pretrained"] = cfg.mean, cfg.std, True
        if settings.drop_path:
            arguments["drop_path_rate"] = settings.drop_path
        channels = int(arguments.pop("in_chans", channels))
        preprocess = self.preprocess(settings, mean, std, channels)
        metadata = {
            "head": settings.head,
            "head_arguments": settings.head_arguments(),
            "classes": data.classes,
            "preprocess": preprocess.to_dict(),
        }
        model = build_dense(self.name, settings.model or "racnn_pico", arguments, metadata)
        notes = () if found is None else (_fill(model, found, self.name, tuple(data.classes)),)
        return Start(model.train(), preprocess, notes)

    def check(self, settings: TrainSettings, start: Start, data: Any, device: torch.device, processes: int) -> None:
        """Check loggers, augmentation, loss, parts to freeze and gradient checkpointing.

        Memory is not foreseen for these tasks.

        Raises:
            DataError: The head or an augmentation needs outlines that the data does not have.
        """
        del device, processes
        check_loggers(settings.logger)
        self.datasets(settings, data, start.preprocess)
        self.task(settings, data, start)
        if settings.freeze:
            self.freeze(copy.deepcopy(start.model), settings.freeze)
        if settings.grad_checkpointing:
            checkpoint_gradients(copy.deepcopy(self.freezable(start.model)))

    def freezable(self, model: nn.Module) -> nn.Module:
        """Return the net: it has the names of a classifier's."""
        net: nn.Module = model.backbone.model  # type: ignore[union-attr, assignment]
        return net

    def freeze(self, model: nn.Module, parts: Sequence[str]) -> Frozen:
        """Freeze parts of the net; "backbone" is all of it, because pyramid and head are left to train."""
        inside = [part for part in parts if part != "backbone"]
        if inside:
            freeze(self.freezable(model), inside)
        if len(inside) < len(parts):
            freeze(model, "backbone.model")
        return count_frozen(model)

    def resumed(self, settings: TrainSettings, name: str, arguments: dict[str, Any], metadata: dict[str, Any]) -> Start:
        """Return the model of a state."""
        model = build_dense(self.name, name, arguments, metadata)
        return Start(model.train(), DensePreprocess.from_dict(metadata["preprocess"]))

    def identity(self, settings: TrainSettings, model: nn.Module) -> tuple[str, dict[str, Any]]:
        """Return name and arguments of the net; the head is in `metadata`."""
        backbone: Any = model.backbone
        return backbone.name, dict(backbone.arguments)

    def metadata(self, data: Any, start: Start) -> dict[str, Any]:
        """Return head, classes and preprocessing."""
        return dense_metadata(start.model, tuple(data.classes), start.preprocess, self.name, **self.more_metadata(data))

    def save(self, model: nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
        """Write a checkpoint that `open_any` reads."""
        save_dense(model, path, metadata)


_CLASSIFIER = frozenset({"num_classes", "drop_rate", "drop_path_rate", "global_pool", "pretrained", "img_size"})
"""Arguments that belong to the run in which weights were trained, not to their architecture."""


def _kept(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a net whose weights are taken that fix its architecture."""
    return {key: _tuple(value) for key, value in arguments.items() if key not in _CLASSIFIER}


def _load(weights: str) -> Checkpoint | DenseCheckpoint:
    return load_checkpoint(weights) if task_of(weights) == "classify" else load_dense(weights)


def _fill(model: Any, found: Checkpoint | DenseCheckpoint, task: str, classes: tuple[str, ...]) -> str:
    """Copy weights into a model, all of them where it is the same one, else the net's; say which."""
    if isinstance(found, DenseCheckpoint):
        same = found.task == task and tuple(found.metadata["classes"]) == classes
        state = found.model.state_dict()
        own = model.state_dict()
        if same and own.keys() == state.keys() and all(own[k].shape == state[k].shape for k in own):
            model.load_state_dict(state)
            return f"All weights come from {found.path}."
        source: nn.Module = found.model.backbone.model
    else:
        source = found.model
    net = model.backbone.model
    own, state = net.state_dict(), source.state_dict()
    missing = [name for name in own if name not in state or state[name].shape != own[name].shape]
    if missing:
        raise CheckpointError(
            f"{found.path} does not fit the backbone: {len(missing)} tensors are missing or of another shape"
            f" ({', '.join(missing[:3])}); give the same model_args as it was trained with"
        )
    net.load_state_dict({name: state[name] for name in own})
    return f"The backbone's weights come from {found.path}; pyramid and head start anew."


def _tuple(value: Any) -> Any:
    return tuple(_tuple(item) for item in value) if isinstance(value, list) else value
