"""Which columns of a table hold the image and its label: the same for Parquet files and saved Hugging Face data sets.

An image is a column of bytes (an encoded file), or the struct {bytes, path} that the library `datasets` writes. What
that library knows of the columns, such as the names of the classes, stands as JSON in the metadata of the schema.
pyarrow is an optional extra and imported when first needed.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from fullfield.data.image_data import quote_some
from fullfield.errors import DataError, MissingExtraError

__all__ = ["Columns", "find_columns", "image_bytes", "import_pyarrow"]

IMAGE_NAMES = ("image", "img", "picture", "photo", "jpg", "png")
LABEL_NAMES = ("label", "labels", "class", "target", "cls", "fine_label")


class Columns(NamedTuple):
    """The columns of a table that matter.

    Attributes:
        image: Name of the column of images.
        label: Name of the column of labels.
        classes: The names of the classes, if the schema tells them.
    """

    image: str
    label: str
    classes: tuple[str, ...] | None


def import_pyarrow(module: str = "pyarrow") -> Any:
    """Import pyarrow or a module of it.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError("Parquet and Arrow files need pyarrow: pip install 'fullfield[data]'") from error


def find_columns(schema: Any, path: Path) -> Columns:
    """Find the columns of images and labels by what the library `datasets` noted, then by their names.

    Args:
        schema: A pyarrow schema.
        path: The file, for messages.

    Raises:
        DataError: There is none, or the image is not stored as bytes.
    """
    features = _features(schema)
    images = [name for name, feature in features.items() if feature.get("_type") == "Image"]
    labels = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    image = _choose(schema.names, images, IMAGE_NAMES)
    label = _choose(schema.names, labels, LABEL_NAMES)
    if image is None or label is None:
        what, usual = ("images", IMAGE_NAMES) if image is None else ("labels", LABEL_NAMES)
        raise DataError(
            f"{path}: has no column of {what}; it has {quote_some(schema.names, 10)}. Name the column {usual[0]!r} "
            f"(or {', '.join(usual[1:])})."
        )
    types = import_pyarrow("pyarrow.types")
    stored = schema.field(image).type
    is_struct = types.is_struct(stored) and stored.get_field_index("bytes") >= 0
    inner = stored.field("bytes").type if is_struct else stored
    if not (types.is_binary(inner) or types.is_large_binary(inner)):
        raise DataError(
            f"{path}: the column {image!r} holds {stored}; expected encoded images, as bytes or as a struct with the "
            "field 'bytes'."
        )
    if not _is_label(types, schema.field(label).type):
        raise DataError(f"{path}: the column {label!r} holds {schema.field(label).type}; expected numbers or text.")
    names = features.get(label, {}).get("names")
    return Columns(image, label, tuple(map(str, names)) if isinstance(names, list) else None)


def image_bytes(column: Any, row: int, archive: Path) -> bytes:
    """Return the encoded image in one row of a column.

    Args:
        column: A pyarrow array or chunked array, of bytes or of structs.
        row: Its row.
        archive: The file that holds the column; a struct without bytes names an image file, from its folder on.

    Raises:
        OSError: The row holds no bytes, or the file that it names cannot be read.
    """
    value = column[row].as_py()
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if data is not None:
        return bytes(data)
    if not path:
        raise OSError("its row holds no image")
    try:
        return Path(archive.parent, str(path)).read_bytes()
    except (OSError, ValueError) as error:
        raise OSError(f"its row holds only the path {path!r} of a file: {error}") from error


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Return what `datasets` noted of the columns, {} if nothing that can be read."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (TypeError, KeyError, ValueError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {name: feature for name, feature in features.items() if isinstance(feature, dict) and name in schema.names}


def _choose(columns: list[str], told: list[str], names: tuple[str, ...]) -> str | None:
    """Return the column that is told, by name if there are several, else the first of the usual names."""
    by_name = [name for name in names if name in (told or columns)]
    if len(told) == 1:
        return told[0]
    return by_name[0] if by_name else None


def _is_label(types: Any, kind: Any) -> bool:
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind))
