"""The errors that Fullfield raises for what a user can mend.

Every message names the thing that is wrong, what was expected, and the way out. The command line prints
the message alone; from Python each is an ordinary exception, and also the built-in that one would expect
(`ValueError`, `OSError`, ...), so that callers need not know this module.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "FullfieldError",
    "ImageError",
    "MissingExtraError",
    "ModelNotFoundError",
    "RunError",
    "TrainingError",
    "nearest",
]


class FullfieldError(Exception):
    """Base of all errors that a user can mend."""


class ConfigError(FullfieldError, ValueError):
    """An option or a configuration key is unknown or has an impossible value."""


class ModelNotFoundError(FullfieldError, ValueError):
    """No model of that name is registered with Fullfield or timm."""


class DataError(FullfieldError, ValueError):
    """A data set cannot be used as it is: a missing folder, a single class, a broken list."""


class ImageError(FullfieldError, ValueError):
    """One image file cannot be read."""


class CheckpointError(FullfieldError, ValueError):
    """A file of weights is damaged, foreign or does not fit the model."""


class RunError(FullfieldError, OSError):
    """A run folder exists already, is missing, is not a run, or cannot be written."""


class TrainingError(FullfieldError, RuntimeError):
    """Training had to stop: the loss is not finite, or too many images cannot be read."""


class MissingExtraError(FullfieldError, ImportError):
    """An optional dependency is needed; the message names the extra to install."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return "; did you mean 'a', 'b'?" for the names nearest to `name`, or an empty string.

    Args:
        name: What was asked for.
        known: The names that exist.
        count: At most so many suggestions.
    """
    close = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f"; did you mean {', '.join(repr(c) for c in close)}?" if close else ""
