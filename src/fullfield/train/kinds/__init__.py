"""What differs between training a classifier, a detector and a segmenter; all else of a run is the same."""

from __future__ import annotations

from importlib import import_module

from fullfield.errors import ConfigError, nearest
from fullfield.train.kinds.kind import Data, Datasets, Finish, Kind, Start

__all__ = ["Data", "Datasets", "Finish", "Kind", "Start", "kind_of"]

_KINDS = {
    "classify": "fullfield.train.kinds.classify:Classify",
    "detect": "fullfield.train.kinds.detect:Detect",
    "segment": "fullfield.train.kinds.segment:Segment",
}


def kind_of(name: str) -> Kind:
    """Return the kind of task of that name; its module is imported when it is first asked for.

    Raises:
        ConfigError: There is no such kind.
    """
    if name not in _KINDS:
        raise ConfigError(f"there is no task {name!r}{nearest(name, _KINDS)}; the tasks are {', '.join(_KINDS)}")
    module, _, kind = _KINDS[name].partition(":")
    made: Kind = getattr(import_module(module), kind)()
    return made
