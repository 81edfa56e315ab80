"""Read a classification data set from Parquet files of encoded images, such as those of the Hugging Face hub.

A Parquet file is read by row groups: to read one image, its row group is read, and the last ones are kept, as many as
fit in `KEPT_BYTES` a process. So an epoch goes through the files by blocks (`epoch_order`). Files with row groups of
hundreds of megabytes are better packed anew.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fullfield.data.archives import find_archives
from fullfield.data.columns import Columns, find_columns, image_bytes, import_pyarrow
from fullfield.data.image_data import ImageData
from fullfield.data.labels import Found, labelled_data
from fullfield.data.order import WINDOW
from fullfield.data.place import Archive
from fullfield.data.shards import check_finished
from fullfield.errors import DataError

__all__ = ["ParquetPlace", "read_parquet"]

KEPT_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class ParquetPlace:
    """A row of a Parquet file.

    Attributes:
        archive: The file.
        column: The column of the image.
        group: The row group.
        row: The row within that group.
    """

    archive: Archive
    column: str
    group: int
    row: int

    @property
    def block(self) -> tuple[Archive, int]:
        """The row group."""
        return self.archive, self.group

    def read(self) -> bytes:
        """Return the bytes of the image.

        Raises:
            OSError: The file is gone, was changed or is damaged there, or the row holds no image.
        """
        column = _row_groups.read(self.archive, self.column, self.group)
        return image_bytes(column, self.row, self.archive.path)


def read_parquet(source: str | Path, *, val_share: float = 0.15, seed: int = 0) -> ImageData:
    """Read the list of images of Parquet files; no image is opened.

    Args:
        source: A folder of .parquet files (see `find_archives`), or one .parquet file. Columns: image (bytes, or a
            struct with the field bytes) and label (numbers or text), or what the metadata of `datasets` name.
        val_share: The share of each class to cut for validation, where there are no files of a part "val".
        seed: Decides which images that cut takes.

    Raises:
        DataError: A file is damaged or lacks a column, the files contradict each other, a label is missing or
            unknown, or there are fewer than two classes.
        MissingExtraError: pyarrow is not installed.
        ConfigError: `val_share` is not between 0 and 1.
    """
    root = Path(source)
    check_finished(root.parent if root.is_file() else root)
    files, notes = find_archives(root, ".parquet")
    first: tuple[Path, Columns] | None = None
    found: dict[str, list[Found]] = {}
    largest = 0
    for split, paths in files.items():
        found[split] = []
        for path in paths:
            columns, images, size = _list(path)
            found[split] += images
            largest = max(largest, size)
            first = first or (path, columns)
            if columns.classes != first[1].classes:
                raise DataError(f"{path}: has other class names than {first[0]}. Read them apart, or mend one.")
    if largest * WINDOW > 4 * KEPT_BYTES:
        notes.append(
            f"The row groups have up to {largest / 2**20:.0f} MiB, too many to be kept while an epoch is shuffled: "
            "reading will be slow. `fullfield pack` makes shards without this."
        )
    names = first[1].classes if first else None
    return labelled_data(str(root), found, names, notes=notes, val_share=val_share, seed=seed)


def _list(path: Path) -> tuple[Columns, list[Found], int]:
    """Return the columns of a file, its images, and the bytes of its largest row group."""
    arrow = import_pyarrow()
    parquet = import_pyarrow("pyarrow.parquet")
    archive = Archive.of(path)
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            columns = find_columns(file.schema_arrow, path)
            labels = file.read(columns=[columns.label], use_threads=False).column(columns.label).to_pylist()
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
            sizes = [(group.num_rows, group.total_byte_size) for group in groups]
    except (arrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: cannot be read as a Parquet file ({error}). Copy it again from its source."
        ) from error
    rows = ((group, row) for group, (count, _) in enumerate(sizes) for row in range(count))
    images = [
        Found(path / str(number), label, ParquetPlace(archive, columns.image, *row))
        for number, (label, row) in enumerate(zip(labels, rows, strict=True))
    ]
    return columns, images, max((size for _, size in sizes), default=0)


class _RowGroups:
    """The row groups that this process has read last; a forked process starts with none."""

    def __init__(self) -> None:
        self.forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        """Drop everything, the lock as well: another thread may have held it when the process was forked."""
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Archive, str, int], Any] = OrderedDict()
        self._bytes = 0

    def read(self, archive: Archive, column: str, group: int) -> Any:
        """Return a column of a row group.

        Raises:
            OSError: It cannot be read.
        """
        key = (archive, column, group)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            values = _read_column(archive, column, group)
            self._kept[key] = values
            self._bytes += values.nbytes
            while self._bytes > KEPT_BYTES and len(self._kept) > 1:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= dropped.nbytes
            return values


def _read_column(archive: Archive, column: str, group: int) -> Any:
    arrow = import_pyarrow()
    parquet = import_pyarrow("pyarrow.parquet")
    archive.check()
    try:
        # without threads: a forked worker does not inherit those of its parent
        with parquet.ParquetFile(archive.path, pre_buffer=False) as file:
            return file.read_row_group(group, columns=[column], use_threads=False).column(0)
    except (arrow.ArrowException, OSError) as error:
        raise OSError(f"row group {group} of {archive.path} is damaged: {error}") from error


_row_groups = _RowGroups()
