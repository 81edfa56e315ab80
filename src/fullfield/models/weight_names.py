"""Whose weights a state dict holds: reading its names as ours, and comparing them with every variant.

The same weights come under many names: with the prefixes of wrappers ("module."), amid the heads of a detector
("backbone."), in the official repository's naming or in ours, with parallel branches merged or not. A `Reading` is
one such view; `compare` says how it fits a model. Nothing here needs a model's memory: shapes come from models on
the meta device.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import timm
from torch import Tensor, nn

from fullfield.models.backbone import Backbone
from fullfield.models.registry import OfficialFormat, create_model, list_models, official_format

__all__ = ["Fit", "Reading", "compare", "describe_nearest", "identify", "readings", "sizes", "to_form"]

PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "body.", "net.")
"""What wrappers (data parallel, compile, Lightning) and dense nets put before the backbone's names."""
COUNTER = "num_batches_tracked"
UNLIKE = 0.2
"""Share of common names below which two nets are of different families, whatever their forms: heads are alike."""


@dataclass(frozen=True)
class Reading:
    """The tensors of a file under our names."""

    naming: str
    """Whose names the file has: "official", "timm" (one that timm translates itself) or "own"."""
    tensors: Mapping[str, Tensor]
    prefix: str = ""
    """What was taken off every name."""
    ignored: tuple[str, ...] = ()
    """Names in the file that are no part of the backbone: heads of dense nets, entries without use."""
    forms: tuple[str, ...] = ("training",)
    """Forms of the model that the file can have: "training", "merged", "fused"."""
    format: OfficialFormat | None = None


@dataclass(frozen=True)
class Fit:
    """How a reading fits a model."""

    reading: Reading
    form: str
    loaded: dict[str, Tensor]
    """Our name -> tensor of the file that fits there, perhaps up to dimensions of size 1."""
    missing: tuple[str, ...]
    """Names of the model that the file lacks."""
    unknown: tuple[str, ...]
    """Names that the model lacks."""
    misshapen: tuple[str, ...]
    """Names whose tensor has another shape or is not of floating point, with both shapes (the file's first)."""
    classifier: tuple[str, ...]
    """The same for the classifier."""
    fresh: tuple[str, ...]
    """Names of the head that a file without a classifier can't fill."""
    unused: tuple[str, ...]
    """Names of the file's head that a model without a classifier can't take."""

    @property
    def whole(self) -> bool:
        """Whether all but perhaps the classifier fits."""
        return not (self.missing or self.unknown or self.misshapen) and bool(self.loaded)

    @property
    def likeness(self) -> float:
        """Share of names, of the file and the model together, that fit: 0 to 1."""
        misfits = len(self.missing) + len(self.unknown) + len(self.misshapen) + len(self.classifier)
        return len(self.loaded) / max(len(self.loaded) + misfits, 1)

    def describe(self) -> str:
        """Return the differences, with three examples of each kind."""
        kinds = {
            "missing": self.missing,
            "unknown": self.unknown,
            "of another shape": self.misshapen + self.classifier,
        }
        told = [
            f"{len(n)} {what} ({', '.join(n[:3])}{', ...' if len(n) > 3 else ''})" for what, n in kinds.items() if n
        ]
        return f"{len(self.loaded)} tensors fit; {'; '.join(told) or 'no differences'}"


def readings(tensors: Mapping[str, Tensor], official: OfficialFormat | None) -> Iterator[Reading]:
    """Yield the ways to read a state dict: each prefix taken off, in our own naming and in the official one.

    Args:
        tensors: As in the file.
        official: The naming of the family in question, None for those without.
    """
    for prefix, inside, outside in _without_prefixes(tensors):
        yield Reading("own", inside, prefix, outside, forms=("training", "merged", "fused"))
        if official is not None:
            yield _translated(inside, prefix, outside, official)


def _without_prefixes(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Mapping[str, Tensor], tuple[str, ...]]]:
    """Yield (prefix, tensors below it, names not below it), the prefix growing from "" as far as there is one."""
    prefix = ""
    outside: tuple[str, ...] = ()
    while True:
        yield prefix, tensors, outside
        counts = {start: sum(name.startswith(start) for name in tensors) for start in PREFIXES}
        start = max(counts, key=lambda key: counts[key])
        if not counts[start]:
            return
        outside += tuple(prefix + name for name in tensors if not name.startswith(start))
        tensors = {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
        prefix += start


def _translated(
    tensors: Mapping[str, Tensor], prefix: str, outside: tuple[str, ...], official: OfficialFormat
) -> Reading:
    merged = bool(official.merged) and any(re.search(official.merged, name) for name in tensors)
    renames = (official.merged_renames if merged else ()) + official.renames
    ours: dict[str, Tensor] = {}
    ignored = list(outside)
    for name, tensor in tensors.items():
        if any(re.search(pattern, name) for pattern in official.ignored):
            ignored.append(prefix + name)
            continue
        renamed = name
        for pattern, replacement in renames:
            renamed = re.sub(pattern, replacement, renamed)
        ours[renamed if renamed not in ours else name] = tensor  # two names for one tensor: the second stays unknown
    return Reading("official", ours, prefix, tuple(ignored), ("merged" if merged else "training",), official)


def compare(
    reading: Reading, form: str, own: Mapping[str, Tensor], classifier: tuple[str, ...], head: tuple[str, ...]
) -> Fit:
    """Compare a reading with a model's state dict.

    Args:
        reading: The file's tensors under our names.
        form: The form in which the model is.
        own: The model's state dict; it may be on the meta device.
        classifier: Prefixes of the classifier's names, such as "head.fc.".
        head: Prefixes of the names that no file of a bare backbone has; they may be missing together.
    """
    given = reading.tensors
    has_head = any(name.startswith(classifier) for name in given)
    wants_head = any(name.startswith(classifier) for name in own)
    missing = [name for name in own if name not in given and not name.endswith(COUNTER)]
    unknown = [name for name in given if name not in own and not name.endswith(COUNTER)]
    fresh = [] if has_head else [name for name in missing if name.startswith(classifier + head)]
    unused = [] if wants_head else [name for name in unknown if name.startswith(classifier + head)]
    loaded: dict[str, Tensor] = {}
    misshapen: list[str] = []
    other_classifier: list[str] = []
    for name in given.keys() & own.keys():
        theirs, ours = given[name], own[name]
        if _without_ones(theirs) == _without_ones(ours) and theirs.is_floating_point() == ours.is_floating_point():
            loaded[name] = theirs.reshape(ours.shape)
            continue
        told = f"{name} {_shape(theirs)} instead of {_shape(ours)}"
        (other_classifier if name.startswith(classifier) else misshapen).append(told)
    return Fit(
        reading,
        form,
        loaded,
        tuple(name for name in missing if name not in fresh),
        tuple(name for name in unknown if name not in unused),
        tuple(sorted(misshapen)),
        tuple(sorted(other_classifier)),
        tuple(fresh),
        tuple(unused),
    )


def _without_ones(tensor: Tensor) -> list[int]:
    return [side for side in tensor.shape if side != 1]


def _shape(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
    return f"{tuple(tensor.shape)}{kind}"


def sizes(reading: Reading, name: str) -> dict[str, int]:
    """Return `num_classes` and `in_chans` of a reading, as arguments of `create_model(name)`.

    A file without a classifier leaves out `num_classes`, one without the model's first convolution `in_chans`.
    """
    cfg = timm.get_pretrained_cfg(name.partition(".")[0])
    found = {}
    for argument, entry, axis in (("num_classes", "classifier", 0), ("in_chans", "first_conv", 1)):
        modules = getattr(cfg, entry, None)
        module = next(iter(modules), None) if isinstance(modules, tuple | list) else modules
        weight = reading.tensors.get(f"{module}.weight")
        if weight is not None and weight.ndim > 1:
            found[argument] = weight.shape[axis]
    return found


def to_form(model: nn.Module, form: str, official: OfficialFormat | None) -> None:
    """Bring a model, in place, to the form of a file: "training", "merged" or "fused"."""
    if form == "training" or not isinstance(model, Backbone):
        return
    if form == "fused":
        model.fuse()
    elif official is not None:
        official.merge(model)
    else:
        model.merge_branches()


@cache
def _state_on_meta(name: str, form: str, official: bool, arguments: tuple[tuple[str, Any], ...]) -> dict[str, Tensor]:
    model = create_model(name, device="meta", **dict(arguments))
    to_form(model, form, official_format(name) if official else None)
    return model.state_dict()


def _fits(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Fit]]:
    """Yield (variant, how the tensors fit it in their best reading) for the variants of the families like them."""
    variants: dict[str, list[str]] = {}
    for info in list_models():
        if info.source == "fullfield":
            variants.setdefault(info.family, []).append(info.name)
    read = {family: list(readings(tensors, official_format(names[0]))) for family, names in variants.items()}
    likeness = {
        family: max(_likeness(reading, names[0]) for reading in read[family]) for family, names in variants.items()
    }
    for family, names in variants.items():
        if likeness[family] > 0 and likeness[family] >= max(likeness.values()) / 2:
            for name in names:
                fits = [fit for reading in read[family] for fit in _fits_of(reading, name)]
                yield name, max(fits, key=lambda fit: (fit.whole, fit.likeness))


def _likeness(reading: Reading, name: str) -> float:
    """Return how much the names of a file look like a variant's, 0 to 1, whatever the numbers in them."""
    given = {re.sub(r"\d+", "#", tensor) for tensor in reading.tensors}
    best = 0.0
    for form in reading.forms:
        own = {re.sub(r"\d+", "#", tensor) for tensor in _state_on_meta(name, form, reading.format is not None, ())}
        best = max(best, len(given & own) / len(given | own))
        if best < UNLIKE:
            break
    return best


def _fits_of(reading: Reading, name: str) -> Iterator[Fit]:
    arguments = tuple(sizes(reading, name).items())
    for form in reading.forms:
        own = _state_on_meta(name, form, reading.format is not None, arguments)
        fit = compare(reading, form, own, ("head.fc.",), ("head.",))
        yield fit
        if fit.whole or fit.misshapen or not fit.loaded:  # merging and fusing change no shape
            return


def identify(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of Fullfield's variants that a state dict fits strictly, classifier and channels of any size."""
    return [name for name, fit in _fits(tensors) if fit.whole]


def describe_nearest(tensors: Mapping[str, Tensor], count: int = 3) -> str:
    """Return a sentence on the variants that a state dict resembles most, or fits, with what differs.

    Args:
        tensors: As in a file.
        count: How many variants to name.
    """
    fits = sorted(_fits(tensors), key=lambda pair: -pair[1].likeness)
    exact = [name for name, fit in fits if fit.whole]
    if exact:
        return f"This file is {' or '.join(exact)}'s"
    near = [f"\n  {name}: {fit.describe()}" for name, fit in fits[:count] if fit.loaded]
    if not near:
        some = ", ".join(list(tensors)[:3])
        return f"Its names ({some}, ...) are those of no model of Fullfield's"
    return f"The nearest of Fullfield's models:{''.join(near)}"
