"""Names of a package that are imported when they are first asked for.

What runs an exported model needs parts of rooms whose other parts need PyTorch; a room's names must not need more than
what is used of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from fullfield.errors import MissingExtraError

__all__ = ["TORCH", "find"]

TORCH = frozenset({"torch", "torchvision", "timm", "safetensors"})
"""What the extra `torch` brings."""


def find(room: str, homes: Mapping[str, str], name: str) -> Any:
    """Return a name of a package, for its `__getattr__`.

    Args:
        room: The package's `__name__`.
        homes: Name -> the module that defines it, or "module:name" where it has another name there.
        name: What was asked for.

    Raises:
        AttributeError: The package has no such name.
        MissingExtraError: The module needs PyTorch or what comes with it, and that is not installed.
    """
    if name not in homes:
        raise AttributeError(f"module {room!r} has no attribute {name!r}")
    module, _, attribute = homes[name].partition(":")
    try:
        return getattr(import_module(module), attribute or name)
    except ModuleNotFoundError as error:
        if error.name in TORCH:
            raise MissingExtraError(f"{room}.{name} needs {error.name}: pip install 'fullfield[torch]'") from error
        raise
