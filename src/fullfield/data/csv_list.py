"""Read a classification data set from a CSV file of paths and labels.

The file comes from spreadsheets and scripts alike, so the delimiter, the spelling of the columns and a byte
order mark are forgiven. What would quietly spoil a training run is not: one image under two labels or in two
splits, an empty label, a file that is missing. Each such message gives the line.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fullfield.data.image_data import SPLITS, ImageData, Sample, canonical_split, quote_some
from fullfield.data.split import with_validation
from fullfield.errors import DataError, nearest

__all__ = ["read_csv"]

DELIMITERS = ",;\t|"
# The name in messages first, then what else the column may be called.
COLUMNS = {
    "path": ("path", "filepath", "filename", "file", "image"),
    "label": ("label", "class", "target"),
    "split": ("split",),
}


@dataclass(frozen=True)
class Row:
    """One line of the list, as it stands there."""

    line: int
    path: Path
    label: str
    split: str


def read_csv(path: str | Path, *, val_share: float = 0.15, seed: int = 0) -> ImageData:
    """Read a list of images with their labels.

    UTF-8, with a header row. Columns: path (or filepath, filename, file, image), label (or class, target)
    and, if wanted, split (train, val or valid or validation, test); others are ignored. Comma, semicolon,
    tab and bar are recognised as delimiters. Paths are relative to the folder of the CSV file, or absolute.
    The classes are the labels of the training part, sorted as text. Without a validation part, one is cut
    from the training part.

    Args:
        path: The CSV file.
        val_share: The share of each class to cut for validation, where none is given.
        seed: Decides which images that cut takes.

    Raises:
        DataError: The file is not UTF-8 text, lacks a column, names missing images, contradicts itself, has
            an empty or unknown value, or fewer than two classes.
        ConfigError: `val_share` is not between 0 and 1.
    """
    path = Path(path)
    rows, notes = _without_repeats(path, _rows(path))
    _check_files(path, rows)
    classes = tuple(sorted({row.label for row in rows if row.split == "train"}))
    if not classes:
        raise DataError(f"{path}: no row belongs to the split 'train'. Mark the training images so.")
    labels = {name: label for label, name in enumerate(classes)}
    for row in rows:
        if row.label not in labels:
            raise DataError(
                f"{path}, line {row.line}: the label {row.label!r} occurs in {row.split} but not in train"
                f"{nearest(row.label, classes) or '.'} Rename it, or add training images of it."
            )
    if len(classes) == 1:
        raise DataError(f"{path}: has only one label, {classes[0]!r}; a classifier needs at least two.")
    rows.sort(key=lambda row: (row.label, row.path.as_posix()))
    splits = {
        split: tuple(Sample(row.path, labels[row.label]) for row in rows if row.split == split)
        for split in SPLITS
        if any(row.split == split for row in rows)
    }
    splits, split_notes = with_validation(splits, val_share, seed)
    return ImageData(str(path), classes, splits, tuple(split_notes + notes))


def _read_lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}). Save it as 'CSV UTF-8'."
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Check the path and its permissions.") from error
    return io.StringIO(text).readlines()  # splitlines would also cut at form feeds and the like


def _column_positions(header: Sequence[str]) -> dict[str, int]:
    """Return where each known column stands; the first of its names that occurs decides."""
    spelled = [column.strip().lower() for column in header]
    return {
        column: next(spelled.index(name) for name in names if name in spelled)
        for column, names in COLUMNS.items()
        if any(name in spelled for name in names)
    }


def _header(path: Path, lines: list[str]) -> tuple[str, dict[str, int]]:
    """Find the delimiter and the columns, by which delimiter yields the most known columns."""
    if not any(line.strip() for line in lines):
        raise DataError(f"{path}: is empty. Expected a header row such as 'path,label', then one image a line.")
    try:
        headers = {d: next(filter(any, csv.reader(lines, delimiter=d))) for d in DELIMITERS}
    except csv.Error as error:
        raise DataError(f"{path}: the header row is not readable as CSV ({error}). Mend it.") from error
    delimiter = max(DELIMITERS, key=lambda d: (len(_column_positions(headers[d])), len(headers[d])))
    columns = _column_positions(headers[delimiter])
    for wanted in ("path", "label"):
        if wanted not in columns:
            name, *others = COLUMNS[wanted]
            found = [column.strip() for column in headers[delimiter]]
            raise DataError(
                f"{path}: the header row has no column {name!r} (or {', '.join(others)}); found "
                f"{quote_some(found)}{nearest(name, found) or '.'} Rename the column, or add a header row."
            )
    return delimiter, columns


def _rows(path: Path) -> Iterator[Row]:
    """Yield the rows that are not blank; every value is there and the split is a known one."""
    lines = _read_lines(path)
    delimiter, columns = _header(path, lines)
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        next(filter(any, reader))  # the header
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            where = f"{path}, line {reader.line_num}"
            values = {
                column: cells[position].strip() if position < len(cells) else "" for column, position in columns.items()
            }
            for column, value in values.items():
                if not value:
                    raise DataError(f"{where}: the {column} is empty. Fill it in or remove the line.")
            split = canonical_split(values.get("split", "train"))
            if split is None:
                known = ("train", "val", "valid", "validation", "test")
                raise DataError(
                    f"{where}: unknown split {values['split']!r}{nearest(values['split'].lower(), known) or '.'} "
                    f"Use one of {', '.join(SPLITS)}."
                )
            # normpath, not resolve: "./a.jpg" is "a.jpg", but a link keeps its own name
            image = Path(os.path.normpath(path.parent / values["path"]))
            yield Row(reader.line_num, image, values["label"], split)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not readable as CSV ({error}). Mend the line.") from error


def _without_repeats(path: Path, rows: Iterator[Row]) -> tuple[list[Row], list[str]]:
    """Keep each image once.

    Raises:
        DataError: An image is listed with two labels or in two splits.
    """
    first: dict[Path, Row] = {}
    repeats = 0
    for row in rows:
        earlier = first.setdefault(row.path, row)
        if earlier is row:
            continue
        for column in ("label", "split"):
            before, now = getattr(earlier, column), getattr(row, column)
            if before != now:
                raise DataError(
                    f"{path}: {row.path} has the {column} {before!r} in line {earlier.line} and {now!r} in line "
                    f"{row.line}. Keep one of the lines."
                )
        repeats += 1
    if not first:
        raise DataError(f"{path}: has a header row but no images. Add one line for each image.")
    notes = [f"Lines ignored because they repeat an earlier one: {repeats}."] if repeats else []
    return list(first.values()), notes


def _check_files(path: Path, rows: list[Row]) -> None:
    missing = [row for row in rows if not _is_file(row.path)]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(rows)} images do not exist: "
            f"{quote_some(row.path for row in missing)} (the first in line {missing[0].line}). Paths count "
            f"from {path.parent}; mend them or remove the lines."
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long, a folder that may not be entered
        return False
