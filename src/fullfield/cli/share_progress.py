"""Progress of work that tells what it does and which share is done: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from fullfield.progress import console

__all__ = ["share_progress"]

MILESTONES = 10  # lines at most, without a terminal


@contextmanager
def share_progress(label: str) -> Iterator[Callable[[str, float], None]]:
    """Show the share done while the block runs.

    Args:
        label: What is being done, shown before the bar.

    Yields:
        A function (what is being done now, share from 0 to 1).
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[status]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=1.0, status="")
        told = -1

        def report(text: str, share: float) -> None:
            nonlocal told
            bar.update(task, completed=share, status=text)
            if not console.is_terminal and int(MILESTONES * share) > told:
                told = int(MILESTONES * share)
                console.print(f"{label}: {share:.0%}, {escape(text)}", soft_wrap=True)

        yield report
