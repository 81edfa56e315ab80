"""A folder beside a file that is being made, for writers that choose names by themselves or write several files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fullfield.errors import FullfieldError
from fullfield.files import write_error

__all__ = ["scratch_folder"]


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """Yield a new hidden folder on the disk of `target`, and remove it with all it holds at the end, however it ends.

    Args:
        target: What is being made. Its folder must exist.

    Raises:
        RunError: The folder can't be made, or the disk is full.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name[:60]}.", dir=target.parent) as folder:
            yield Path(folder)
    except OSError as error:
        if isinstance(error, FullfieldError) or error.errno is None:
            raise
        raise write_error(target, error) from error
