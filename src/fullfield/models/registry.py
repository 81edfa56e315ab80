"""Which models there are, and how to make one by name: Fullfield's own and every one of timm's.

Fullfield registers its models with timm, so `timm.create_model("racnn_tiny")` works as soon as `fullfield` has
been imported. It never takes a name that timm has. `create_model` here is timm's, with two additions: an unknown
name or argument is answered with the nearest known ones, and the model remembers how it was made (`model_spec`),
so that `save` can write it beside the weights.
"""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from torch import nn

from fullfield.errors import ModelNotFoundError, nearest
from fullfield.models.peers import PEERS

__all__ = [
    "ModelInfo",
    "ModelSpec",
    "OfficialFormat",
    "create_model",
    "list_models",
    "model_spec",
    "official_format",
    "register_family",
]

_OURS: dict[str, str] = {}  # name of a model -> name of its family
_OFFICIAL: dict[str, OfficialFormat] = {}  # name of a family -> how its official checkpoints are written
# what must not come back from a file: it would fetch or unpickle something
NOT_STORED = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "device", "dtype"}
)


@dataclass(frozen=True)
class ModelSpec:
    """How a model was made: `create_model(name, **arguments)` makes the same architecture again."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelInfo:
    """One line of `fullfield models`: a registered name and where it comes from ("fullfield" or "timm")."""

    name: str
    source: str
    family: str


@dataclass(frozen=True)
class OfficialFormat:
    """How the official checkpoints of a family name their tensors.

    Tensors may also differ from ours by dimensions of size 1 (a linear layer's weight (O, I) and a 1x1 convolution's
    (O, I, 1, 1)); the loader reshapes those.
    """

    renames: tuple[tuple[str, str], ...]
    """Regular expressions and their replacements, applied to every official name one after the other, in order."""
    merged: str = ""
    """A regular expression that matches a name only in checkpoints whose branches are merged; "" if there are none."""
    merged_renames: tuple[tuple[str, str], ...] = ()
    """Applied before `renames` to merged checkpoints, for names that stand for another tensor of ours there."""
    merge: Callable[[Any], object] = lambda model: model.merge_branches()
    """Brings one of our models, in place, to the form of a merged checkpoint."""
    ignored: tuple[str, ...] = ()
    """Regular expressions of official names that our model has no use for, such as norms of dense heads."""


class ModelFamily(Protocol):
    """What `register_family` needs of a model class."""

    def __call__(self, cfg: Any, **arguments: Any) -> nn.Module:
        """Build the model that `cfg` describes."""


def register_family(
    module: str,
    family: ModelFamily,
    variants: Mapping[str, Any],
    *,
    official: OfficialFormat | None = None,
    **default_cfg: Any,
) -> None:
    """Register every variant of a family with timm, and make it an attribute of the family's module.

    Args:
        module: `__name__` of the file that calls.
        family: The model class, called as `family(cfg, in_chans=..., num_classes=..., ...)`.
        variants: Registered name -> frozen config dataclass.
        official: How official checkpoints are written, None where there are none.
        default_cfg: Entries of timm's pretrained cfg that all variants share.

    Raises:
        ValueError: timm (or another family) has that name already.
    """
    taken = sorted(name for name in variants if is_model(name))
    if taken:
        raise ValueError(f"{', '.join(taken)}: registered already; Fullfield never shadows a name that timm has")
    home = sys.modules[module]
    if official is not None:
        _OFFICIAL[module.rpartition(".")[2]] = official
    home.default_cfgs = generate_default_cfgs(  # type: ignore[attr-defined]
        {name: {"url": "", "num_classes": 1000, "input_size": (3, 224, 224), **default_cfg} for name in variants}
    )
    for name, cfg in variants.items():
        entrypoint = _entrypoint(name, family, cfg)
        entrypoint.__module__ = module
        setattr(home, name, register_model(entrypoint))
        _OURS[name] = module.rpartition(".")[2]


def _entrypoint(name: str, family: ModelFamily, cfg: Any) -> Any:
    def build(pretrained: bool = False, **arguments: Any) -> nn.Module:
        model = build_model_with_cfg(
            cast("Any", family),
            name,
            pretrained,
            model_cfg=cfg,
            feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
            **arguments,
        )
        _remember(model, ModelSpec(name, {k: v for k, v in arguments.items() if k not in NOT_STORED}))
        return cast("nn.Module", model)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"Build {name} on the timm contract; see `{name}` in docs/models."
    return build


def _remember(model: nn.Module, spec: ModelSpec) -> None:
    model._fullfield_spec = spec  # type: ignore[assignment]


def model_spec(model: nn.Module) -> ModelSpec | None:
    """Return how `model` was made, or None if neither Fullfield's nor `create_model` made it, or it was pruned.

    The number of classes and the pooling are the model's present ones, so a classifier that was reset is described
    as it is.
    """
    spec = getattr(model, "_fullfield_spec", None)
    if not isinstance(spec, ModelSpec):
        return None
    present = {name: getattr(model, name, None) for name in ("num_classes", "global_pool")}
    # some of timm's models hold their pooling as a module
    return ModelSpec(spec.name, spec.arguments | {k: v for k, v in present.items() if isinstance(v, int | str)})


def create_model(name: str, **arguments: Any) -> nn.Module:
    """Make a model by its registered name: one of Fullfield's or one of timm's.

    Args:
        name: As `fullfield models` prints it; timm's may carry a weights tag ("resnet50.a1_in1k").
        arguments: timm's (`pretrained`, `num_classes`, `in_chans`, `features_only`, `drop_path_rate`, ...) and the
            family's own (for RaCNN: `region_size`, `heads`, `token_mixer`, ...).

    Returns:
        The model, in training mode, with random weights unless `pretrained=True`.

    Raises:
        ModelNotFoundError: No such name; the nearest are named.
        ConfigError: A RaCNN argument that does not exist or has an impossible value.
    """
    if not is_model(name):
        raise ModelNotFoundError(
            f"no model is called {name!r} (`fullfield models` lists them all)"
            f"{nearest(name.partition('.')[0].lower(), timm.list_models())}"
        )
    model: nn.Module = timm.create_model(name, **arguments)
    _remember(model, ModelSpec(name, {k: v for k, v in arguments.items() if k not in NOT_STORED and v is not None}))
    return model


def official_format(name: str) -> OfficialFormat | None:
    """Return how the official checkpoints of a registered model are written; None if there are none or it is timm's."""
    return _OFFICIAL.get(_OURS.get(name, ""))


def list_models(pattern: str = "") -> list[ModelInfo]:
    """Return the models whose name matches a shell pattern, Fullfield's first.

    Args:
        pattern: Such as "racnn*", or "*" for all of timm's too; empty for Fullfield's own and the nets of timm's that
            they are compared with (`PEERS`).

    Raises:
        ModelNotFoundError: Nothing matches; the nearest names are given.
    """
    ours = [name for name in _OURS if not pattern or fnmatch.fnmatch(name, pattern)]
    theirs = timm.list_models(pattern) if pattern else PEERS
    rows = [ModelInfo(name, "fullfield", _OURS[name]) for name in ours]
    for name in theirs:
        if name not in _OURS:
            entrypoint = timm.models.model_entrypoint(name)
            rows.append(ModelInfo(name, "timm", entrypoint.__module__.rpartition(".")[2]))
    if not rows:
        raise ModelNotFoundError(f"no model matches {pattern!r}{nearest(pattern.strip('*'), timm.list_models())}")
    return rows
