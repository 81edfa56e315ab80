"""The image sets that come with the package, small enough to ship and licensed for it.

Each is a folder of `samples/` in the layout of `read_folder`, with `SOURCE.md` and `LICENSE` beside the
images. The scripts that made them are in `studies/embedded_sample/`.
"""

from __future__ import annotations

from pathlib import Path

from fullfield.errors import DataError, nearest

__all__ = ["SAMPLE_PREFIX", "sample_names", "sample_path"]

SAMPLE_PREFIX = "sample:"
ROOT = Path(__file__).resolve().parent / "samples"


def sample_names() -> list[str]:
    """Return the names of the embedded samples, sorted."""
    return sorted(folder.name for folder in ROOT.iterdir() if folder.is_dir())


def sample_path(name: str) -> Path:
    """Return the folder of an embedded sample.

    Args:
        name: One of `sample_names()`.

    Raises:
        DataError: There is no sample of that name.
    """
    names = sample_names()
    if name not in names:
        hint = nearest(name, names) or "."
        raise DataError(f"There is no embedded sample {name!r}{hint} The samples are: {', '.join(names)}.")
    return ROOT / name
