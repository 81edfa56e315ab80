"""Measured rows as files and data frames: every result of this room is a table first."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from fullfield.errors import ConfigError, MissingExtraError
from fullfield.files import atomic_write, write_json

__all__ = ["Row", "rows_to_dataframe", "write_rows"]

Row = dict[str, Any]


def write_rows(rows: Sequence[Row], path: str | Path) -> Path:
    """Write rows to a CSV file, or to JSON if the name ends in .json, atomically.

    Args:
        rows: All with plain values; a column that a row lacks is left empty.
        path: The file; its folder must exist.

    Raises:
        ConfigError: There is no row, or the name ends in neither .csv nor .json.
        RunError: The file can't be written.
    """
    path = Path(path)
    if not rows:
        raise ConfigError(f"nothing was measured, so {path} would be empty")
    if path.suffix == ".json":
        write_json(path, list(rows))
        return path
    if path.suffix != ".csv":
        raise ConfigError(f"{path} must end in .csv or .json")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with atomic_write(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows_to_dataframe(rows: Sequence[Row]) -> Any:
    """Return rows as a pandas data frame.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    try:
        pandas = import_module("pandas")
    except ModuleNotFoundError as error:
        raise MissingExtraError("a data frame needs pandas (pip install pandas); to_rows() has the values") from error
    return pandas.DataFrame(list(rows))
