"""Weights of detectors and segmenters in one safetensors file that says how to build them.

It is a file as `models.weights.save` writes it, whose net is the backbone of a whole model: the header names the task
and the head too, and the tensors are the whole model's. Loading executes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from fullfield.data.dense import DensePreprocess
from fullfield.errors import CheckpointError, ConfigError
from fullfield.models.weight_file import read_safetensors
from fullfield.models.weights import fill, find_weights, read_header, write_weights

__all__ = ["DENSE_MODELS", "DenseCheckpoint", "build_dense", "dense_metadata", "load_dense", "save_dense", "task_of"]

DENSE_MODELS = {
    "detect": "fullfield.tasks.detection.detector:Detector",
    "segment": "fullfield.tasks.segmentation.segmenter:Segmenter",
}
"""Task -> the class of its models, imported when needed."""


@dataclass(frozen=True)
class DenseCheckpoint:
    """A loaded file: the model in eval mode and what was saved beside it."""

    task: str
    model: Any
    """A `Detector` or a `Segmenter`."""
    name: str
    """Head and net, such as "fcos racnn_pico"."""
    metadata: dict[str, Any]
    path: Path


def dense_metadata(
    model: Any, classes: tuple[str, ...], preprocess: DensePreprocess, task: str, **more: Any
) -> dict[str, Any]:
    """Return what goes beside the weights of a detector or segmenter; `load_dense` reads it back."""
    return {
        "task": task,
        "head": model.head_name,
        "head_arguments": dict(model.head_arguments),
        "classes": list(classes),
        "preprocess": preprocess.to_dict(),
        **more,
    }


def build_dense(task: str, name: str, arguments: Mapping[str, Any], metadata: Mapping[str, Any]) -> nn.Module:
    """Build a detector or segmenter with random weights.

    Args:
        task: "detect" or "segment".
        name: Of the backbone.
        arguments: Of its `create_model`.
        metadata: As `dense_metadata` returned it.

    Raises:
        ConfigError: It can't be built with these.
        KeyError: The metadata is incomplete.
    """
    module, _, kind = DENSE_MODELS[task].partition(":")
    made: nn.Module = getattr(import_module(module), kind)(
        name,
        metadata["head"],
        len(metadata["classes"]),
        preprocess=DensePreprocess.from_dict(metadata["preprocess"]),
        head_arguments=_tuples(metadata["head_arguments"]),
        **_tuples(arguments),
    )
    return made


def save_dense(model: Any, path: Path, metadata: Mapping[str, Any]) -> Path:
    """Write a detector or segmenter, atomically.

    Args:
        model: With `backbone` (a `FeatureBackbone`), `head_name` and `head_arguments`.
        path: The file; its folder must exist.
        metadata: As `dense_metadata` returned it, and more.

    Raises:
        CheckpointError: Arguments are not plain JSON values.
        RunError: The disk is full or the folder can't be written.
    """
    header = {"name": model.backbone.name, "arguments": dict(model.backbone.arguments), "task": metadata["task"]}
    return write_weights(path, model.state_dict(), header | {"metadata": dict(metadata)})


def task_of(path: str | Path) -> str:
    """Return the task of a weights file or run folder: classify, detect or segment; no tensor is read.

    Raises:
        CheckpointError: There is no such file, or its header is incomplete.
    """
    file = find_weights(path)
    try:
        with safe_open(file, framework="pt") as opened:
            header = read_header(file, opened.metadata() or {})
    except (OSError, SafetensorError):  # whoever loads it says what is wrong with it
        return "classify"
    return "classify" if header is None else header.task


def load_dense(path: str | Path) -> DenseCheckpoint:
    """Load a detector or segmenter that `save_dense` wrote.

    Args:
        path: The file, or a run folder.

    Returns:
        The model on the CPU, in eval mode, with what was saved beside it.

    Raises:
        CheckpointError: The file is missing, truncated, not Fullfield's, or does not fit its model.
    """
    file = find_weights(path)
    entries, tensors = read_safetensors(file)
    header = read_header(file, entries)
    if header is None or header.task not in DENSE_MODELS:
        raise CheckpointError(f"{file} holds no detector or segmenter that Fullfield wrote")
    metadata, spec = header.metadata, header.spec
    try:
        model = build_dense(header.task, spec.name, spec.arguments, metadata)
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{file}: its model can't be built ({error}); was the file edited?") from error
    fill(file, model, tensors)
    return DenseCheckpoint(header.task, model.eval(), f"{metadata['head']} {spec.name}", metadata, file)


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _tuple(value) for key, value in values.items()}


def _tuple(value: Any) -> Any:
    return tuple(_tuple(item) for item in value) if isinstance(value, list) else value
