"""Progress of long work on the screen: a bar with images/s and time left on a terminal, plain lines elsewhere.

Everything goes to standard error, so that standard output stays clean for results and `--json`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Advance", "console", "image_progress", "output"]

console = Console(stderr=True, highlight=False)


def output() -> Console:
    """Return the console for results, on standard output; wide where that is not a terminal, so nothing is cut."""
    screen = Console(highlight=False)
    return screen if screen.is_terminal else Console(highlight=False, width=200)


class Advance(Protocol):
    """Report that some more images are done, and what to show beside the bar."""

    def __call__(self, images: int, status: str = "") -> None:
        """Move the bar by `images` and show `status`."""


@contextmanager
def image_progress(label: str, total: int, *, seen: int = 0) -> Iterator[Advance]:
    """Show a bar for `total` images while the block runs.

    Args:
        label: What is being done, shown before the bar.
        total: Images in all.
        seen: Images done before (a resumed run).

    Yields:
        A function (images, status) that moves the bar. Without a terminal it does nothing: callers print their own
        milestones.
    """
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:>8} images/s"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[status]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    start, done = time.perf_counter(), 0
    with bar:
        task = bar.add_task(label, total=total, completed=seen, rate="", status="")

        def advance(images: int, status: str = "") -> None:
            nonlocal done
            done += images
            rate = done / max(time.perf_counter() - start, 1e-9)
            bar.update(task, advance=images, rate=f"{rate:.1f}", status=status)

        yield advance
