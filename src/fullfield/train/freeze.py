"""Keeping parts of a model as they are while the rest is trained: a linear probe, or fine-tuning of the last stages.

A frozen parameter needs no gradient, so nothing before the first trained layer is kept for the backward pass. A frozen
norm with running statistics stays in eval mode as well: otherwise the statistics, which are no parameters, would drift
to the new data under weights that were not trained on it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from fullfield.errors import ConfigError, nearest

__all__ = ["Frozen", "freeze"]

_RANGE = re.compile(r"(?P<stem>.*\.)?(?P<first>\d+)-(?P<last>\d+)")


class Frozen(NamedTuple):
    """How many numbers a model has on either side."""

    frozen: int
    """Parameters that stay."""
    trained: int
    """Parameters that are trained."""


def freeze(model: nn.Module, what: str | Sequence[str]) -> Frozen:
    """Freeze parts of a model, in place.

    Call it after anything that replaces modules (a new classifier, SyncBatchNorm): what comes later is not frozen.

    Args:
        model: One of Fullfield's or timm's, or any module for prefixes of names.
        what: One or more of "backbone" (all but the classifier), "stem", and prefixes of parameter names that end at a
            dot: "stages.0", "layer1", "head.norm"; a last number may be a range: "stages.0-2".

    Returns:
        The numbers of parameters frozen and trained; a shared parameter counts once.

    Raises:
        ConfigError: A part is unknown (the nearest is named), the model has no classifier to leave, or nothing would be
            left to train. The model is then as it was.
    """
    parts = [what] if isinstance(what, str) else list(what)
    chosen = [_chooser(model, part) for part in parts]

    def is_frozen(name: str) -> bool:
        return any(choose(name) for choose in chosen)

    frozen = [p for name, p in model.named_parameters() if p.requires_grad and is_frozen(name)]
    trained = {id(p) for p in model.parameters() if p.requires_grad} - {id(p) for p in frozen}
    if not trained:
        raise ConfigError(f"freezing {', '.join(parts)} leaves nothing to train; freeze less")
    for parameter in frozen:
        parameter.requires_grad_(False)
    for name, module in model.named_modules():
        if isinstance(module, _NormBase) and module.running_mean is not None and is_frozen(f"{name}."):
            module.eval()
            module.register_forward_pre_hook(_stay_in_eval)  # model.train() sets every module to training again
    counts = {id(p): (p.numel(), p.requires_grad) for p in model.parameters()}
    return Frozen(
        sum(count for count, needed in counts.values() if not needed),
        sum(count for count, needed in counts.values() if needed),
    )


def _stay_in_eval(module: nn.Module, _: Any) -> None:
    module.training = False


def _chooser(model: nn.Module, part: str) -> Callable[[str], bool]:
    """Return whether a name of a parameter, or of a module and a dot, belongs to a part.

    Raises:
        ConfigError: None does.
    """
    if part == "backbone":
        return _outside(_classifier_names(model))
    names = [name for name, _ in model.named_parameters()]
    if part == "stem" and not any(_starts(name, "stem") for name in names):
        matcher = getattr(model, "group_matcher", None)
        pattern = matcher().get("stem") if callable(matcher) else None
        if isinstance(pattern, str) and any(re.match(pattern, name) for name in names):
            return lambda name: re.match(pattern, name) is not None
    prefixes = _expand(part)
    for prefix in prefixes:
        if not prefix or not any(_starts(name, prefix) for name in names):
            known = ["backbone", *dict.fromkeys(p for name in names for p in _prefixes(name))]
            raise ConfigError(
                f"no parameter's name begins with {prefix!r}, so it can't be frozen{nearest(prefix, known)}. Give"
                f" backbone, or one or more of {', '.join(dict.fromkeys(name.split('.')[0] for name in names))}"
            )
    return lambda name: any(_starts(name, prefix) for prefix in prefixes)


def _classifier_names(model: nn.Module) -> list[str]:
    """Return the names of the last linear layers; a distilled net has two.

    Raises:
        ConfigError: The model does not tell, or has none with parameters.
    """
    getter = getattr(model, "get_classifier", None)
    found = getter() if callable(getter) else None
    layers = found if isinstance(found, tuple) else (found,)
    names = [
        name
        for name, module in model.named_modules()
        if any(module is layer for layer in layers) and any(True for _ in module.parameters())
    ]
    if not names:
        raise ConfigError(
            f"{type(model).__name__} has no classifier, so 'backbone' would freeze all of it; name the parts to freeze"
        )
    return names


def _outside(names: Sequence[str]) -> Callable[[str], bool]:
    return lambda name: not any(_starts(name, classifier) for classifier in names)


def _expand(part: str) -> list[str]:
    """Return the prefixes that a part stands for: "stages.0-2" for three of them."""
    match = _RANGE.fullmatch(part)
    if match is None:
        return [part.rstrip(".")]
    first, last = int(match["first"]), int(match["last"])
    if first > last:
        raise ConfigError(f"{part!r} is an empty range; write the smaller number first")
    return [f"{match['stem'] or ''}{number}" for number in range(first, last + 1)]


def _starts(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
