"""How all commands parse their arguments: tyro on a dataclass, required arguments by position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import tyro

__all__ = ["parse"]

T = TypeVar("T")


def parse(kind: type[T], command: str, argv: Sequence[str], *, default: T | None = None) -> T:
    """Fill a dataclass from the command line; wrong usage prints what was meant and exits with 2.

    Args:
        kind: The dataclass; its docstring and its fields' docstrings are the help.
        command: Name of the subcommand.
        argv: Arguments after it.
        default: Values from elsewhere (a YAML file), which the command line overrides.
    """
    config = (tyro.conf.PositionalRequiredArgs, tyro.conf.PositionalMetavarFromFieldName)
    prog = f"fullfield {command}"
    if default is None:
        return tyro.cli(kind, prog=prog, args=list(argv), config=config)
    return tyro.cli(kind, prog=prog, args=list(argv), default=default, config=config)
