"""Find out what a user's DATA is (a folder, a list, archives, an embedded sample), and read its list of images."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from fullfield.data.archives import COMPRESSED, archive_kind, compressed_error
from fullfield.data.arrow import read_arrow
from fullfield.data.csv_list import read_csv
from fullfield.data.folder import read_folder
from fullfield.data.image_data import ImageData, Sample
from fullfield.data.parquet import read_parquet
from fullfield.data.sample import SAMPLE_PREFIX, sample_path
from fullfield.data.shards import read_shards
from fullfield.errors import DataError, nearest

__all__ = ["ImageData", "Sample", "collector_paused", "nearest_sibling", "read_image_data"]

EXPECTED = (
    "a folder of images, a .csv file with the columns path and label, a folder or file of .tar shards or .parquet, "
    f"a folder of datasets.save_to_disk, or {SAMPLE_PREFIX}NAME"
)
_READERS: dict[str | None, Callable[..., ImageData]] = {
    None: read_folder,
    ".csv": read_csv,
    ".tar": read_shards,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}


def read_image_data(source: str | Path, *, val_share: float = 0.15, seed: int = 0) -> ImageData:
    """Read the list of images of a classification data set; no image is opened.

    Args:
        source: A folder of images (see `read_folder`), a file ending in .csv (see `read_csv`), a folder or file of
            tar shards (see `read_shards`) or Parquet (see `read_parquet`), a folder of a saved Hugging Face data set
            (see `read_arrow`), or "sample:NAME" (see `sample_names("classify")`).
        val_share: The share of each class to cut for validation, where the data have no validation part.
        seed: Decides which images that cut takes.

    Raises:
        DataError: There is no such thing, it is of another kind or of two, or it cannot be used as it is.
        MissingExtraError: It needs pyarrow, which is not installed.
        ConfigError: `val_share` is not between 0 and 1.
    """
    name = str(source)
    if name.startswith(SAMPLE_PREFIX):
        folder = sample_path(name.removeprefix(SAMPLE_PREFIX), "classify")
        return replace(read_folder(folder, val_share=val_share, seed=seed), source=name)
    path = Path(source)
    try:
        is_folder, exists = path.is_dir(), bool(name) and path.exists()
    except (OSError, ValueError) as error:  # a name too long, a folder that may not be entered
        raise DataError(f"{name}: cannot be opened ({error}). Check the path and its permissions.") from error
    if not exists:
        raise DataError(f"{name!r} does not exist{nearest_sibling(path) or '.'} Name {EXPECTED}.")
    kind = archive_kind(path) if is_folder else path.suffix.lower()
    if name.lower().endswith(COMPRESSED) and not is_folder:
        raise compressed_error(path)
    if kind not in _READERS or (kind == ".arrow" and not is_folder):
        raise DataError(f"{name}: is not a data set that can be read. Name {EXPECTED}.")
    with collector_paused():
        return _READERS[kind](path, val_share=val_share, seed=seed)


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Pause Python's garbage collector: it would look through the growing list again and again, finding nothing.

    Listing 100,000 images of an indexed shard took 4.0 s with it and 1.1 s without.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def nearest_sibling(path: Path) -> str:
    """Suggest what stands beside the first part of `path` that does not exist."""
    for missing in (path, *path.parents):
        if missing.parent.is_dir():
            return nearest(missing.name, (sibling.name for sibling in missing.parent.iterdir()), count=1)
    return ""
