"""Writing files so that a crash, a kill or a full disk never costs what was there before.

A file is written under a temporary name in the same folder, synced to the disk and renamed over the old one; the
rename is atomic, so a reader sees the old file or the new one and never half of either.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fullfield.errors import RunError

__all__ = ["atomic_write", "write_error"]


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
    partial = path.with_name(f".{path.name[:100]}.{os.getpid()}.partial")
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
        _sync(path.parent)
    except OSError as error:
        _remove(partial)
        raise write_error(path, error) from error
    except BaseException:
        _remove(partial)
        raise


def write_error(path: Path, error: OSError) -> RunError:
    """Return the error to raise when writing `path` failed with `error`: it says what is wrong and what to do."""
    if error.errno == errno.ENOSPC:
        kept = "the previous version is intact" if path.exists() else "nothing was overwritten"
        return RunError(f"the disk is full, {path} was not written; {kept}. Free some space and run again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RunError(f"{path} can't be written (permission denied); choose another folder or mend its permissions")
    return RunError(f"{path} can't be written: {error}")


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
