"""The command `fullfield`: finds the subcommand, and turns errors that a user can mend into one line.

Exit codes: 0 done, 1 a mendable error, 2 wrong usage, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fullfield.errors import ConfigError, FullfieldError, nearest
from fullfield.lazy import TORCH
from fullfield.version import __version__

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "models": "what there is: parameters, MACs, resolution, source",
    "train": "train a classifier, detector or segmenter on your images",
    "eval": "measure a trained model on annotated images",
    "predict": "name, find or outline what is in images",
    "erf": "see what a model sees: effective receptive fields",
    "cam": "see which parts of an image speak for a class",
    "shift": "see whether answers stay when images move",
    "bench": "time models against each other on this machine",
    "compare": "put models side by side on one page",
    "choose": "find the backbones that meet a budget here",
    "pack": "put many images into few large files",
    "convert": "make a Fullfield file of an official checkpoint",
    "export": "write a model as a file that runs elsewhere, and check it",
    "serve": "answer images over HTTP",
    "app": "a page in the browser: answers, maps, fields, costs",
    "push": "share a trained model on the Hugging Face Hub",
}
"""Subcommand -> what it does; each has a module of its name (eval: evaluate) with `run(argv) -> exit code`."""

_MODULES = {"eval": "evaluate"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `fullfield ARGV` and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may not fit the terminal's encoding
    screen = Console(stderr=True, highlight=False)
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        _print_help()
        return 0
    if arguments[0] in {"-V", "--version"}:
        Console(highlight=False).print(f"fullfield {__version__}")
        return 0
    command = arguments[0]
    if command not in COMMANDS:
        screen.print(f"[red]error:[/] there is no command {escape(repr(command))}{escape(nearest(command, COMMANDS))}")
        screen.print("`fullfield --help` lists them all.")
        return 2
    try:
        run: Callable[[list[str]], int] = import_module(f"fullfield.cli.{_MODULES.get(command, command)}").run
        return run(arguments[1:])
    except ModuleNotFoundError as error:
        if error.name not in TORCH:
            raise
        screen.print(f"[red]error:[/] fullfield {command} needs {error.name}: pip install 'fullfield\\[torch]'")
        return 1
    except ConfigError as error:
        screen.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        return 2
    except (FullfieldError, OSError) as error:  # OSError: a name too long, a folder that may not be read, ...
        screen.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130


def _print_help() -> None:
    screen = Console(highlight=False)
    screen.print("[bold]fullfield[/] COMMAND ...   Vision backbones that see the whole image.\n")
    table = Table.grid(padding=(0, 2))
    for name, what in COMMANDS.items():
        table.add_row(f"  fullfield {name}", what)
    screen.print(table)
    screen.print("\n`fullfield COMMAND --help` lists a command's options. Start with:\n")
    screen.print("  fullfield train PHOTOS          a folder with one subfolder for each class", markup=False)


if __name__ == "__main__":
    sys.exit(main())
