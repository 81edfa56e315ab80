"""Rooms that can be called: a package whose name is also a command runs that command when it is called.

`fullfield.train` is the room of training and `fullfield.train(...)` is `fullfield train ...`; the Python API thus
mirrors the command line one to one, whatever has been imported before.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from fullfield.errors import MissingExtraError

__all__ = ["make_callable"]


def make_callable(room: str, function: str, extra: str | None = None) -> None:
    """Let the package `room` be called as one of its functions.

    Args:
        room: The package's `__name__`.
        function: "module:function", imported at the first call.
        extra: The optional dependencies that the function needs, named if one is missing.
    """

    class CallableRoom(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            module, _, name = function.partition(":")
            try:
                target = getattr(import_module(module), name)
            except ModuleNotFoundError as error:
                if extra is None or (error.name or "").startswith("fullfield"):
                    raise
                raise MissingExtraError(f"{room} needs {error.name}: pip install 'fullfield[{extra}]'") from error
            return target(*args, **kwargs)

    sys.modules[room].__class__ = CallableRoom
