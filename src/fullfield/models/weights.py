"""Saving a model to one safetensors file that says how to build it, and loading it without executing anything.

The file's header carries, as JSON under the key "fullfield", the registered name, the arguments, whether branches
were merged and norms folded, and whatever the caller adds (class names, preprocessing). Loading builds the model from
the registry and fills it strictly; a file that is damaged, foreign or does not fit is refused with what to do about
it. Other people's files are `official.py`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models import is_model
from torch import Tensor, nn

from fullfield.errors import CheckpointError, nearest
from fullfield.files import atomic_write
from fullfield.models.backbone import Backbone
from fullfield.models.hub_file import fetch_weights, hub_repository
from fullfield.models.registry import NOT_STORED, ModelSpec, create_model, list_models, model_spec
from fullfield.models.weight_file import read_safetensors

__all__ = [
    "Checkpoint",
    "Header",
    "build",
    "fill",
    "find_weights",
    "load",
    "load_checkpoint",
    "read_header",
    "save",
    "write_weights",
]

HEADER = "fullfield"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded file: the model in eval mode, how it was made, and the metadata saved with it."""

    model: nn.Module
    spec: ModelSpec
    metadata: dict[str, Any]
    path: Path


@dataclass(frozen=True)
class Header:
    """What a Fullfield file says of its model."""

    spec: ModelSpec
    form: str
    """"training", "merged" (parallel branches are one convolution) or "fused" (norms are folded too)."""
    metadata: dict[str, Any]
    task: str = "classify"
    """Of a whole model with another head ("detect", "segment"), the net in `spec` is its backbone."""


def save(model: nn.Module, path: str | Path, metadata: Mapping[str, Any] | None = None) -> Path:
    """Write a model's weights and how to build it to one safetensors file, atomically.

    Args:
        model: Made by `create_model` or by `timm.create_model` of one of Fullfield's names.
        path: The file, usually ending in .safetensors; its folder must exist.
        metadata: Anything JSON can carry, such as class names.

    Returns:
        The path.

    Raises:
        CheckpointError: How the model was made is unknown (a pruned one counts), or the metadata is not JSON.
        RunError: The disk is full or the folder can't be written; an older file of that name is intact.
    """
    path = Path(path)
    spec = model_spec(model)
    if spec is None:
        raise CheckpointError(
            f"{type(model).__name__} can't be saved with its configuration: make it with"
            " fullfield.create_model(name), and do not prune it"
        )
    forms = {form: bool(getattr(model, form, False)) for form in ("merged", "fused")}
    return write_weights(path, model.state_dict(), asdict(spec) | forms | {"metadata": dict(metadata or {})})


def write_weights(path: Path, state: Mapping[str, Tensor], header: Mapping[str, Any]) -> Path:
    """Write tensors with a header to one safetensors file, atomically.

    Args:
        path: The file; its folder must exist.
        state: Name -> tensor, of any device.
        header: What the file says of its model, see `read_header`.

    Raises:
        CheckpointError: The header is not JSON.
        RunError: The disk is full or the folder can't be written; an older file of that name is intact.
    """
    try:
        text = json.dumps(dict(header))
    except TypeError as error:
        raise CheckpointError(f"{path}: model arguments and metadata must be plain JSON values ({error})") from error
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    with atomic_write(path) as partial:
        save_file(_unshared(tensors), partial, metadata={"format": "pt", HEADER: text})
    return path


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory, which the format does not allow."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.numel() and tensor.data_ptr() in seen:
            tensors[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    return tensors


def load(path: str | Path, *, num_classes: int | None = None, reset_classifier: bool = False) -> nn.Module:
    """Load a model that `save` wrote.

    Args:
        path: A .safetensors file, or a run folder (its best checkpoint is taken).
        num_classes: The number of classes that you need; None for the file's own.
        reset_classifier: Start a new classifier if the file's number of classes is another.

    Returns:
        The model on the CPU, in eval mode.

    Raises:
        CheckpointError: The file is missing, truncated, not Fullfield's, names an unknown model, does not fit it, or
            has another number of classes.
    """
    model = load_checkpoint(path).model
    found = getattr(model, "num_classes", None)
    if num_classes is not None and found != num_classes:
        if not reset_classifier:
            raise CheckpointError(
                f"{path} has {found} classes, {num_classes} are needed; pass reset_classifier=True"
                " (--reset-classifier) to start a new classifier on its features"
            )
        model.reset_classifier(num_classes)  # type: ignore[operator]
    return model


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Load a model with all that was saved beside its weights; see `load`."""
    file = find_weights(path)
    entries, tensors = read_safetensors(file)
    header = read_header(file, entries)
    if header is None:
        raise CheckpointError(
            f"{file} holds weights, but not how to build their model: it was not written by Fullfield. Use"
            " fullfield.load_weights(name, path) or `fullfield convert`, or build the model with create_model and fill"
            " it with load_state_dict"
        )
    if header.task != "classify":
        raise CheckpointError(
            f"{file} holds a model for --task {header.task} on {header.spec.name}, not a classifier; use what takes"
            " such runs (eval, predict), or a classifier's run"
        )
    model = build(file, header.spec)
    if isinstance(model, Backbone):
        if header.form == "fused":
            model.fuse()
        elif header.form == "merged":
            model.merge_branches()
    fill(file, model, tensors)
    return Checkpoint(model.eval(), header.spec, header.metadata, file)


def read_header(file: Path, entries: Mapping[str, str]) -> Header | None:
    """Return what the metadata of a safetensors file say of its model; None if Fullfield did not write it.

    Args:
        file: For the message.
        entries: The file's metadata.

    Raises:
        CheckpointError: The header is incomplete.
    """
    text = entries.get(HEADER)
    if text is None:
        return None
    try:
        header = json.loads(text)
        spec = ModelSpec(str(header["name"]), dict(header["arguments"]))
        # files of before merging was recorded have no such entry
        form = "fused" if header.get("fused", False) else "merged" if header.get("merged", False) else "training"
        return Header(spec, form, dict(header.get("metadata", {})), str(header.get("task", "classify")))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: its fullfield header is incomplete ({error!r}); save it again") from error


def find_weights(path: str | Path) -> Path:
    """Return the weights file that a path means: itself, or the best checkpoint of a run folder.

    "hf-hub:USER/NAME@REVISION" means the weights of a repository, which are fetched.

    Raises:
        CheckpointError: There is none, or it can't be fetched.
    """
    shared = hub_repository(path)
    if shared is not None:
        return fetch_weights(shared[0], revision=shared[1])
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise CheckpointError(f"there is no checkpoint or run folder {path}{nearest(path.name, siblings)}")
    for name in ("best", "last"):
        file = path / "checkpoints" / f"{name}.safetensors"
        if file.is_file():
            return file
    raise CheckpointError(
        f"{path} is not a run with weights: it has no checkpoints/best.safetensors. Give a folder that"
        " `fullfield train` made, or a .safetensors file"
    )


def build(file: Path, spec: ModelSpec) -> nn.Module:
    """Build the model that the header of a file asks for, with random weights.

    Raises:
        CheckpointError: There is no such model, or the header has arguments that no checkpoint may have or that build
            nothing.
    """
    known = [info.name for info in list_models()]
    if not is_model(spec.name):
        raise CheckpointError(
            f"{file} needs the model {spec.name!r}, which is not registered{nearest(spec.name, known)}"
        )
    forbidden = sorted(NOT_STORED & spec.arguments.keys())
    if forbidden:
        raise CheckpointError(f"{file}: its header sets {', '.join(forbidden)}, which no checkpoint may")
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.arguments.items()}
    try:
        return create_model(spec.name, **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise CheckpointError(f"{file}: {spec.name} can't be built with {spec.arguments}: {error}") from error


def fill(file: Path, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load the tensors of a file into a model that has the same names and shapes.

    Raises:
        CheckpointError: Names or shapes differ, or a weight is not finite.
    """
    own = model.state_dict()
    misfits = {
        "missing": own.keys() - tensors.keys(),
        "unknown": tensors.keys() - own.keys(),
        "of another shape": {n for n in own.keys() & tensors.keys() if own[n].shape != tensors[n].shape},
    }
    if any(misfits.values()):
        told = (f"{len(n)} {what} ({', '.join(sorted(n)[:3])})" for what, n in misfits.items() if n)
        raise CheckpointError(f"{file} does not fit its model: tensors {'; '.join(told)}; was it edited?")
    first = next((t for t in tensors.values() if t.is_floating_point()), None)
    if first is not None:
        model.to(first.dtype)
    if not all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point()):
        raise CheckpointError(f"{file} has weights that are not finite; use another checkpoint of the run")
    model.load_state_dict(tensors)
