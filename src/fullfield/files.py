"""Writing files so that a crash, a kill or a full disk never costs what was there before.

A file is written under a temporary name in the same folder, synced to the disk and renamed over the old one; the
rename is atomic, so a reader sees the old file or the new one and never half of either.
"""

from __future__ import annotations

import csv
import errno
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fullfield.errors import FullfieldError, RunError

__all__ = ["atomic_write", "write_csv", "write_error", "write_json"]

FULL = (errno.ENOSPC, errno.EDQUOT)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path; rename it to `path` when the block ends well, remove it when it does not.

    Args:
        path: The file to make or replace. Its folder must exist.

    Yields:
        The path to write to, in the same folder.

    Raises:
        RunError: The disk is full or the folder can't be written; the old file is untouched.
    """
    path = Path(path)
    start = os.fsdecode(os.fsencode(path.name)[:100])  # a name has at most 255 bytes, with the suffix too
    partial = path.with_name(f".{start}.{os.getpid()}.partial")
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
        _sync(path.parent)
    except BaseException as error:
        _remove(partial)
        failure = _failed_write(error)
        if failure is None:
            raise
        raise write_error(path, failure) from error


def write_json(path: str | Path, document: Any) -> None:
    """Write plain values as JSON in UTF-8, atomically; file names that are not UTF-8 become JSON's escapes.

    Args:
        path: The file to make or replace.
        document: Dictionaries, lists, text and numbers.

    Raises:
        RunError: The disk is full or the folder can't be written.
    """
    text = json.dumps(document, indent=1, ensure_ascii=False)
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_error(path: Path, error: OSError) -> RunError:
    """Return the error to raise when writing `path` failed with `error`: it says what is wrong and what to do."""
    if error.errno in FULL:
        kept = "the previous version is intact" if path.exists() else "nothing was overwritten"
        return RunError(f"the disk is full, {path} was not written; {kept}. Free some space and run again")
    if error.errno in DENIED:
        return RunError(f"{path} can't be written (permission denied); choose another folder or mend its permissions")
    return RunError(f"{path} can't be written: {error}")


def _failed_write(error: BaseException) -> OSError | None:
    """Return the failed write behind an error: torch hides it in the context, Rust (safetensors) in its message."""
    if isinstance(error, FullfieldError | KeyboardInterrupt):
        return None
    if isinstance(error, OSError):
        return error
    told = re.search(r"\(os error (\d+)\)", str(error))
    if told is not None:
        number = int(told[1])
        return OSError(number, os.strerror(number))
    context = error.__context__
    return context if isinstance(context, OSError) and context.errno in (*FULL, errno.EFBIG, errno.EIO) else None


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk; some file systems can't sync folders, and need not."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def write_csv(path: str | Path, rows: Sequence[Sequence[Any]]) -> None:
    """Write rows, the heading first, as CSV; bytes of file names that are not UTF-8 are written as escapes.

    Raises:
        RunError: The folder can't be written or the disk is full.
    """
    with (
        atomic_write(path) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        csv.writer(file).writerows(rows)
