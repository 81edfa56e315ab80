"""Archives of images written by tarfile and pyarrow themselves, as other programs write them."""

from __future__ import annotations

import importlib
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Labelled = tuple[str, bytes, int]
"""Name without extension, image file, number of its class."""

CLASSES = ("ant", "bee", "cat.big")


def encoded(number: int, kind: str = "PNG", size: tuple[int, int] = (20, 24)) -> bytes:
    """Return an image file of noise."""
    values = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format=kind)
    return buffer.getvalue()


def noise(count: int, start: int = 0) -> list[Labelled]:
    """Return images whose classes alternate."""
    return [(f"{number:04}", encoded(number), number % len(CLASSES)) for number in range(start, start + count)]


def write_folder(root: Path, images: Iterable[Labelled]) -> Path:
    """Write `root/class/name.png`."""
    for name, data, label in images:
        path = root / CLASSES[label] / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def write_members(path: Path, members: Iterable[tuple[str, bytes]], **options: Any) -> Path:
    """Write a tar file with these files in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, options.pop("mode", "w"), **options) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_shard(path: Path, images: Iterable[Labelled], **options: Any) -> Path:
    """Write a tar file in the convention of webdataset: name.png and name.cls."""
    members = [pair for name, data, label in images for pair in ((f"{name}.png", data), (f"{name}.cls", b"%d" % label))]
    return write_members(path, members, **options)


def write_class_names(folder: Path, names: Sequence[str] = CLASSES) -> None:
    """Write `classes.json`."""
    (folder / "classes.json").write_text(json.dumps(names))


def hub_table(images: Sequence[Labelled]) -> Any:
    """Return a pyarrow table as the library `datasets` makes it."""
    arrow = importlib.import_module("pyarrow")
    features = {"image": {"_type": "Image"}, "label": {"names": list(CLASSES), "_type": "ClassLabel"}}
    schema = arrow.schema(
        [
            ("image", arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])),
            ("label", arrow.int64()),
        ],
        metadata={b"huggingface": json.dumps({"info": {"features": features}}).encode()},
    )
    rows = {
        "image": [{"bytes": data, "path": f"{name}.png"} for name, data, _ in images],
        "label": [label for _, _, label in images],
    }
    return arrow.table(rows, schema=schema)


def write_parquet(path: Path, table: Any, rows: int = 4) -> Path:
    """Write a table as Parquet with row groups of so many rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    importlib.import_module("pyarrow.parquet").write_table(table, path, row_group_size=rows)
    return path


def write_saved_split(folder: Path, tables: Sequence[Any], rows: int = 4) -> Path:
    """Write the folder of one split in the format of `datasets.save_to_disk`, one Arrow file a table."""
    arrow = importlib.import_module("pyarrow")
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{number:05}-of-{len(tables):05}.arrow" for number in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with arrow.OSFile(str(folder / name), "wb") as file, arrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=rows)
    state = {"_data_files": [{"filename": name} for name in names], "_format_type": None, "_split": folder.name}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def write_saved(root: Path, splits: dict[str, Sequence[Labelled]]) -> Path:
    """Write a folder of several splits in the format of `datasets.save_to_disk`."""
    for name, images in splits.items():
        write_saved_split(root / name, [hub_table(images)])
    (root / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return root
