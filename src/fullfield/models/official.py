"""Filling a model with anyone's checkpoint: the official ones of each family, timm's, and our own.

`load_weights` finds out how a file names its tensors (container, prefix, naming, branches merged or not), checks every
name and shape before it changes anything, and says what it did in the model's `loaded_from` and in one line to the
logger "fullfield". How a family's official names become ours stands in its file, as `OfficialFormat`.
"""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fullfield.errors import CheckpointError
from fullfield.models.backbone import Backbone
from fullfield.models.registry import OfficialFormat, create_model, list_models, model_spec, official_format
from fullfield.models.weight_file import StateDict, is_safetensors, read_safetensors, read_state_dict
from fullfield.models.weight_names import Fit, Reading, compare, describe_nearest, identify, readings, sizes, to_form
from fullfield.models.weights import Header, build, find_weights, read_header

__all__ = ["LoadReport", "load_weights", "models_in"]

_LOGGER = logging.getLogger("fullfield")


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` found in a file and did with it."""

    path: str
    """The file."""
    model: str
    """Registered name of the model, or its class if it has none."""
    container: str
    """Key of the state dict in the file; "" if the file is one state dict."""
    others: tuple[str, ...]
    """Keys of the file's other state dicts, for `which`."""
    prefix: str
    """What was taken off every name."""
    naming: str
    """Whose names the file has: "official", "timm" (translated by timm) or "own"."""
    form: str
    """Form of the file, and of the model now: "training", "merged" or "fused"."""
    loaded: int
    """Tensors loaded."""
    ignored: tuple[str, ...]
    """Names in the file that the model has no use for."""
    fresh: tuple[str, ...]
    """Names of the model that kept their values: the head, where the file has none or it was not wanted."""
    classifier: str
    """"loaded", "fresh" (random, or the model's own) or "none" (the model has none)."""

    def __str__(self) -> str:
        what = {"official": "official names", "timm": "names that timm translates", "own": "the model's own names"}
        place = f"{self.container!r} of {self.path}" if self.container else self.path
        told = [
            f"{self.model}: {self.loaded} tensors of {place}",
            what[self.naming] + (f" under {self.prefix!r}" if self.prefix else ""),
            f"{self.form} form",
            f"classifier {self.classifier}",
        ]
        if self.ignored:
            more = ", ..." if len(self.ignored) > 3 else ""
            told.append(f"{len(self.ignored)} ignored ({', '.join(self.ignored[:3])}{more})")
        if self.others:
            told.append(f"also in the file: {', '.join(map(repr, self.others))}")
        return "; ".join(told)


def load_weights(
    model: nn.Module | str, path: str | Path, *, which: str | None = None, reset_classifier: bool = False
) -> nn.Module:
    """Fill a model with the weights of an official checkpoint, a timm one, a plain state dict or a Fullfield file.

    Known are the containers `model`, `state_dict`, `model_ema` and their like, the prefixes of wrappers, the
    backbones of segmentation and detection files (their heads are left out), and branches merged or not. Nothing from
    the file is executed. Values are converted to the model's dtype. The module is changed only once all fits; its
    attribute `loaded_from` (a `LoadReport`) says what was done.

    Args:
        model: A module, which keeps its mode unless the file is merged; or a registered name, which is built with the
            file's number of classes and channels.
        path: A .pth, .pt, .bin, .ckpt or .safetensors file, or a run folder.
        which: Key of the state dict to take, such as "model_ema"; None for the file's own weights, or the average if
            there is nothing else.
        reset_classifier: Keep the module's classifier if the file's has another size. A name needs no such thing.

    Returns:
        The module; in eval mode if it was built from a name. A file with merged branches (or fused norms) leaves it
        in that form, which is for inference only.

    Raises:
        CheckpointError: The file is missing, damaged, foreign, needs code to be run, has weights that are not finite,
            or fits neither the model (the nearest models and their differences are named) nor its classifier.
        ModelNotFoundError: No model has that name.
    """
    state, header = _read(path, which)
    if isinstance(model, str):
        return _fill(_build(model, state, header), state, header, reset_classifier=False).eval()
    return _fill(model, state, header, reset_classifier=reset_classifier)


def models_in(path: str | Path, which: str | None = None) -> list[str]:
    """Return the names of Fullfield's models that a file fits strictly, whatever its number of classes.

    Args:
        path: As for `load_weights`.
        which: As for `load_weights`.

    Raises:
        CheckpointError: The file can't be read, or fits none; the nearest are named with their differences.
    """
    state, header = _read(path, which)
    names = [header.spec.name] if header is not None else identify(state.tensors)
    if not names:
        raise CheckpointError(f"{state.path} fits no model of Fullfield's. {describe_nearest(state.tensors)}")
    return names


def _read(path: str | Path, which: str | None) -> tuple[StateDict, Header | None]:
    """Return a state dict of a file, and its header if Fullfield wrote it."""
    file = find_weights(path)
    header = read_header(file, read_safetensors(file)[0]) if is_safetensors(file) else None
    return read_state_dict(file, which), header


def _build(name: str, state: StateDict, header: Header | None) -> nn.Module:
    """Return a new model with the number of classes and channels that the file has in that model's naming."""
    if header is not None and header.spec.name.partition(".")[0] == name.partition(".")[0]:
        return build(state.path, header.spec)
    found = [sizes(reading, name) for reading in readings(state.tensors, official_format(name))]
    return create_model(name, **max(found, key=len))


def _fill(model: nn.Module, state: StateDict, header: Header | None, *, reset_classifier: bool) -> nn.Module:
    """Fill a module once all has been checked; see `load_weights`."""
    target = _backbone_in(model)
    fit = _best_fit(target, state, header)
    if not fit.whole:
        raise CheckpointError(_refusal(target, state, header, fit))
    if fit.classifier and not reset_classifier:
        raise CheckpointError(
            f"{state.path} has another classifier than {_name(target)} ({fit.classifier[0]}). Make the model with the"
            " file's num_classes, give its name instead of a module, or keep the model's own classifier with"
            " reset_classifier=True"
        )
    bad = sorted(name for name, t in fit.loaded.items() if t.is_floating_point() and not bool(torch.isfinite(t).all()))
    if bad:
        raise CheckpointError(f"{state.path} has weights that are not finite ({', '.join(bad[:3])}); use another file")
    to_form(target, fit.form, fit.reading.format)
    target.load_state_dict(fit.loaded, strict=False)  # `compare` has checked every name and shape
    report = _report(target, state, fit)
    model.loaded_from = target.loaded_from = report  # type: ignore[assignment]
    # a classifier that the file lacks is easily overlooked; one that the caller kept is not
    _LOGGER.log(logging.WARNING if fit.fresh else logging.INFO, "%s", report)
    return model


def _backbone_in(model: nn.Module) -> nn.Module:
    """Return the backbone inside the wrapper of torch.compile, of data parallel or of timm's features_only."""
    for attribute in ("_orig_mod", "module", "model"):
        inner = getattr(model, attribute, None)
        if isinstance(inner, Backbone):
            return inner
    return model


def _best_fit(target: nn.Module, state: StateDict, header: Header | None) -> Fit:
    """Return the reading that fits whole, or else the one that fits best."""
    classifier = tuple(f"{name}." for name in _classifiers(target))
    head = ("head.",) if isinstance(target, Backbone) else classifier
    own = target.state_dict()
    best: Fit | None = None
    for reading in _readings(target, state):
        forms = (header.form,) if header is not None and reading.naming == "own" else reading.forms
        for form in forms:
            expected = own if form == "training" else _state_in_form(target, form, reading.format)
            fit = compare(reading, form, expected, classifier, head)
            if fit.whole:
                return fit
            if best is None or fit.likeness > best.likeness:
                best = fit
            if fit.misshapen or not fit.loaded:  # merging and fusing change no shape: no other form fits
                break
    assert best is not None  # noqa: S101 - there is always the reading as it is
    return best


def _readings(target: nn.Module, state: StateDict) -> Iterator[Reading]:
    yield from readings(state.tensors, _official_format(target))
    translate = getattr(sys.modules.get(type(target).__module__), "checkpoint_filter_fn", None)
    if translate is None or isinstance(target, Backbone):
        return
    for reading in readings(state.tensors, None):
        try:
            tensors = translate(dict(reading.tensors), target)
        except Exception:  # noqa: S112 - written for the files of one model: it may fail with anything on others
            continue
        yield Reading("timm", tensors, reading.prefix, reading.ignored)


def _official_format(target: nn.Module) -> OfficialFormat | None:
    spec = model_spec(target)
    if spec is not None:
        return official_format(spec.name)
    family = type(target).__module__.rpartition(".")[2]  # made by its class
    return next((official_format(info.name) for info in list_models() if info.family == family), None)


def _classifiers(target: nn.Module) -> tuple[str, ...]:
    """Return the names of the classifier's layers."""
    cfg: Any = getattr(target, "pretrained_cfg", None) or {}
    names = cfg.get("classifier") or ("head.fc" if isinstance(target, Backbone) else ())
    return (names,) if isinstance(names, str) else tuple(names)


def _state_in_form(target: nn.Module, form: str, official: OfficialFormat | None) -> dict[str, Tensor]:
    """Return what the state dict would be in that form; the model itself stays as it is."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta")) for p in target.parameters()}
    memo |= {id(buffer): buffer.to("meta") for buffer in target.buffers()}
    copied = copy.deepcopy(target, memo)
    to_form(copied, form, official)
    return copied.state_dict()


def _refusal(target: nn.Module, state: StateDict, header: Header | None, fit: Fit) -> str:
    hint = ""
    if getattr(target, "merged", False):
        hint = " The model's branches are merged already: load weights into a new one, and merge or fuse it afterwards."
    whose = f"This file is {header.spec.name}'s" if header is not None else describe_nearest(state.tensors)
    return f"{state.path} does not fit {_name(target)}: {fit.describe()}.{hint} {whose}"


def _report(target: nn.Module, state: StateDict, fit: Fit) -> LoadReport:
    starts = tuple(f"{name}." for name in _classifiers(target))
    own = [name for name in target.state_dict() if name.startswith(starts)]
    kept = tuple(name for name in own if name not in fit.loaded)
    return LoadReport(
        path=str(state.path),
        model=_name(target),
        container=state.container,
        others=state.others,
        prefix=fit.reading.prefix,
        naming=fit.reading.naming,
        form=fit.form,
        loaded=len(fit.loaded),
        ignored=fit.reading.ignored + fit.unused + state.not_tensors,
        fresh=tuple(dict.fromkeys(fit.fresh + kept)),
        classifier="none" if not own else "fresh" if kept else "loaded",
    )


def _name(target: nn.Module) -> str:
    spec = model_spec(target)
    return spec.name if spec is not None else type(target).__name__
