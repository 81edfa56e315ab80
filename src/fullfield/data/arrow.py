"""Read a data set that the library `datasets` of Hugging Face saved with `save_to_disk`; `datasets` is not needed.

The folder of one split holds `state.json`, which names its Arrow files; several splits lie in folders that
`dataset_dict.json` names. An Arrow file is a stream of record batches of about a thousand rows, which is mapped into
memory: reading an image copies its bytes and nothing else.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fullfield.data.columns import Columns, find_columns, image_bytes, import_pyarrow
from fullfield.data.image_data import ImageData, canonical_split, quote_some
from fullfield.data.labels import Found, labelled_data
from fullfield.data.place import Archive
from fullfield.errors import DataError

__all__ = ["ArrowPlace", "read_arrow"]

KEPT_OPEN = 64  # files


@dataclass(frozen=True, slots=True)
class ArrowPlace:
    """A row of an Arrow file.

    Attributes:
        archive: The file.
        column: The column of the image.
        batch: The record batch.
        row: The row within that batch.
    """

    archive: Archive
    column: str
    batch: int
    row: int

    @property
    def block(self) -> tuple[Archive, int]:
        """The record batch."""
        return self.archive, self.batch

    def read(self) -> bytes:
        """Return the bytes of the image.

        Raises:
            OSError: The file is gone, was changed or is damaged, or the row holds no image.
        """
        batch = _open(self.archive).batches[self.batch]
        return image_bytes(batch.column(self.column), self.row, self.archive.path)


def read_arrow(source: str | Path, *, val_share: float = 0.15, seed: int = 0) -> ImageData:
    """Read the list of images of a saved Hugging Face data set; no image is opened.

    Args:
        source: The folder that `save_to_disk` wrote, of one split or of several.
        val_share: The share of each class to cut for validation, where there is no split "validation".
        seed: Decides which images that cut takes.

    Raises:
        DataError: A file is missing or damaged, or lacks a column, a label is missing or unknown, or there are fewer
            than two classes.
        MissingExtraError: pyarrow is not installed.
        ConfigError: `val_share` is not between 0 and 1.
    """
    root = Path(source)
    folders, notes = _split_folders(root)
    first: tuple[Path, Columns] | None = None
    found: dict[str, list[Found]] = {}
    for split, folder in folders.items():
        found[split] = []
        for path in _files(folder):
            columns, images, note = _list(path)
            found[split] += images
            notes += [note] if note else []
            first = first or (path, columns)
            if columns.classes != first[1].classes:
                raise DataError(f"{path}: has other class names than {first[0]}. Read them apart, or mend one.")
    names = first[1].classes if first else None
    return labelled_data(str(root), found, names, notes=notes, val_share=val_share, seed=seed)


def _split_folders(root: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the folder of each split; a data set without splits is all "train"."""
    if not (root / "dataset_dict.json").is_file():
        return {"train": root}, []
    names = _load(root / "dataset_dict.json", "splits")
    folders: dict[str, Path] = {}
    others = []
    for name in map(str, names):
        split = canonical_split(name)
        if split is None or split in folders:
            others.append(name)
        else:
            folders[split] = root / name
    return folders, [f"Splits ignored: {quote_some(others)}."] if others else []


def _files(folder: Path) -> list[Path]:
    state = folder / "state.json"
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in _load(state, "_data_files")]
    if not names or None in names:
        raise DataError(f"{state}: does not name its data files. Save the data set again.")
    return [folder / str(name) for name in names]


def _load(path: Path, key: str) -> list[Any]:
    """Return a list from one of the library's JSON files."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        values, indirect = document[key], document.get("_indices_data_files")
        if not isinstance(values, list):
            raise TypeError(f"{key} is not a list")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: cannot be read as what datasets.save_to_disk writes ({error!r}). Save the data set again."
        ) from error
    if indirect:  # versions of the library before 2 wrote the rows that `select` had left out as well
        raise DataError(f"{path}: selects rows by a list of indices. Call flatten_indices() and save again.")
    return values


def _list(path: Path) -> tuple[Columns, list[Found], str | None]:
    """Return the columns of a file, its images, and a note if it is cut off."""
    archive = Archive.of(path)
    try:
        stream = _open(archive)
    except OSError as error:
        raise DataError(f"{path}: cannot be read as an Arrow stream ({error}). Copy it again.") from error
    columns = find_columns(stream.schema, path)
    images: list[Found] = []
    for number, batch in enumerate(stream.batches):
        for row, label in enumerate(batch.column(columns.label).to_pylist()):
            images.append(Found(path / str(len(images)), label, ArrowPlace(archive, columns.image, number, row)))
    note = stream.problem and (
        f"{path} is damaged or cut off ({stream.problem}): the {len(images)} images before that are used, any behind "
        "it are lost. Copy it again from its source."
    )
    return columns, images, note


class _Stream(NamedTuple):
    """An Arrow file mapped into memory, and what is wrong with its end, if anything."""

    schema: Any
    batches: list[Any]
    problem: str | None


@functools.lru_cache(maxsize=KEPT_OPEN)
def _open(archive: Archive) -> _Stream:
    """Map the record batches of a file.

    Raises:
        OSError: It is not a stream at all, or was changed.
    """
    arrow = import_pyarrow()
    batches: list[Any] = []
    archive.check()
    try:
        reader = arrow.ipc.open_stream(arrow.memory_map(str(archive.path)))
    except arrow.ArrowException as error:
        raise OSError(str(error)) from error
    try:
        while True:
            batches.append(reader.read_next_batch())
    except StopIteration:
        return _Stream(reader.schema, batches, None)
    except (arrow.ArrowException, OSError) as error:
        return _Stream(reader.schema, batches, str(error))
