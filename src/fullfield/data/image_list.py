"""Find out what a user's DATA is, a folder, a CSV file or an embedded sample, and read its list of images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fullfield.data.csv_list import read_csv
from fullfield.data.folder import read_folder
from fullfield.data.image_data import ImageData, Sample
from fullfield.data.sample import SAMPLE_PREFIX, sample_path
from fullfield.errors import DataError, nearest

__all__ = ["ImageData", "Sample", "read_image_data"]

EXPECTED = f"a folder of images, a .csv file with the columns path and label, or {SAMPLE_PREFIX}NAME"


def read_image_data(source: str | Path, *, val_share: float = 0.15, seed: int = 0) -> ImageData:
    """Read the list of images of a classification data set; no image is opened.

    Args:
        source: A folder (see `read_folder`), a file ending in .csv (see `read_csv`), or "sample:NAME" (see
            `sample_names`).
        val_share: The share of each class to cut for validation, where the data have no validation part.
        seed: Decides which images that cut takes.

    Raises:
        DataError: There is no such thing, it is of another kind, or it cannot be used as it is.
        ConfigError: `val_share` is not between 0 and 1.
    """
    name = str(source)
    if name.startswith(SAMPLE_PREFIX):
        folder = sample_path(name.removeprefix(SAMPLE_PREFIX))
        return replace(read_folder(folder, val_share=val_share, seed=seed), source=name)
    path = Path(source)
    try:
        is_folder, exists = path.is_dir(), bool(name) and path.exists()
    except (OSError, ValueError) as error:  # a name too long, a folder that may not be entered
        raise DataError(f"{name}: cannot be opened ({error}). Check the path and its permissions.") from error
    if not exists:
        raise DataError(f"{name!r} does not exist{_nearest_sibling(path) or '.'} Name {EXPECTED}.")
    if is_folder:
        return read_folder(path, val_share=val_share, seed=seed)
    if path.suffix.lower() != ".csv":
        raise DataError(f"{name}: is not a data set that can be read. Name {EXPECTED}.")
    return read_csv(path, val_share=val_share, seed=seed)


def _nearest_sibling(path: Path) -> str:
    """Suggest what stands beside the first part of `path` that does not exist."""
    for missing in (path, *path.parents):
        if missing.parent.is_dir():
            return nearest(missing.name, (sibling.name for sibling in missing.parent.iterdir()), count=1)
    return ""
