"""What may change between the parts of a run that was continued, and what may not unless the user names it.

How many processes read and train, how often a state is saved and what is shown do not touch the result. All else does:
a run that goes on with another learning rate or other images is not the run that was stopped, and must not pass for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from typing import Any

from fullfield.errors import ConfigError, nearest
from fullfield.train.checkpoint import Position
from fullfield.train.kinds.kind import Data, Kind
from fullfield.train.settings import TrainSettings

__all__ = ["FREE", "check_unchanged", "fingerprint", "with_changes"]

FREE = frozenset(
    {
        *("out", "overwrite", "workers", "device", "devices", "restarts", "strategy", "checkpoint_every", "logger"),
        *("patience", "max_bad", "grad_checkpointing", "weights", "reset_classifier", "pretrained", "task"),
    }
)
"""Settings that a continued run may change freely; the last four have done their work when it started."""

DATA = "images"


def fingerprint(data: Data, kind: Kind) -> str:
    """Return 32 hexadecimal digits that depend on the classes, and on the names and labels of all images trained on.

    Validation images count too. The folder that the images are in does not matter, so that data may be moved.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update("\0".join(data.classes).encode("utf-8", "surrogateescape"))
    for split in ("train", "val"):
        digest.update(f"\1{split}".encode())
        for sample in data.splits[split]:
            digest.update(f"\0{kind.fingerprint(sample)}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def with_changes(settings: TrainSettings, changes: Mapping[str, Any]) -> TrainSettings:
    """Return the settings of a run with changes to them.

    Raises:
        ConfigError: A name is not a setting (the nearest is named), or a value is impossible.
    """
    known = [field.name for field in fields(TrainSettings)]
    for name in changes:
        if name not in known:
            raise ConfigError(f"there is no setting {name!r}{nearest(name, known)}")
    return replace(settings, **changes)


def check_unchanged(
    position: Position, settings: TrainSettings, digest: str, source: str, allowed: Collection[str] = ()
) -> list[str]:
    """Compare a state with the run that is to go on from it.

    Args:
        position: Of the state.
        settings: That the run would go on with.
        digest: `fingerprint` of the data that it would go on with.
        source: Of these data, for the message.
        allowed: Settings that may differ though it changes the run; "images" for the lists of images.

    Returns:
        A sentence for each difference that was allowed.

    Raises:
        ConfigError: Something differs that matters and is not allowed, or a name of `allowed` does not exist.
    """
    names = [field.name for field in fields(TrainSettings)]
    for name in allowed:
        if name not in (*names, DATA):
            raise ConfigError(f"--allow-change: there is no setting {name!r}{nearest(name, [*names, DATA])}")
    differences = {}
    defaults = {field.name: field.default for field in fields(TrainSettings)}
    for name in names:
        if name in FREE or name == "data":
            continue
        before, now = position.settings.get(name, defaults[name]), getattr(settings, name)
        if _plain(before) != _plain(now):
            differences[name] = f"{name} from {_plain(before)} to {_plain(now)}"
    if position.data != digest:
        differences[DATA] = f"the lists of images ({source} is not what it was)"
    refused = [name for name in differences if name not in allowed]
    if refused:
        raise ConfigError(
            f"going on would change {', '.join(differences[name] for name in refused)}, and the run would not be the"
            f" one that was stopped. Undo the change, or allow it: --allow-change {' '.join(refused)}"
        )
    return [f"changed: {words}" for words in differences.values()]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
