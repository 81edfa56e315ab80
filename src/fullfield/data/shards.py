"""Read a classification data set from tar shards in the convention of webdataset.

`train-000000.tar` holds `cat/1.jpg` beside `cat/1.cls` (or `.json`, `.txt`) with its label, a number or a name. The
names of the classes stand in `classes.json` or `classes.txt`, or are the labels themselves. Unlike webdataset, which
streams, every image has a position, and is read from its shard at its offset: order, augmentation, resuming and the
division among processes are those of any other data set.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from fullfield.data.archives import find_archives
from fullfield.data.image_data import ImageData
from fullfield.data.labels import Found, labelled_data
from fullfield.data.place import TarPlace
from fullfield.data.tar_index import Shard, shards_of
from fullfield.errors import DataError

__all__ = ["CLASSES", "MANIFEST", "read_shards"]

CLASSES = "classes.json"
CLASSES_TEXT = "classes.txt"
MANIFEST = "pack.json"  # see pack.py


def read_shards(source: str | Path, *, val_share: float = 0.15, seed: int = 0) -> ImageData:
    """Read the list of images of tar shards; no image is opened.

    Args:
        source: A folder of .tar files (see `find_archives`), or one .tar file.
        val_share: The share of each class to cut for validation, where there are no shards of a part "val".
        seed: Decides which images that cut takes.

    Raises:
        DataError: A shard is not an uncompressed tar file, a label is missing or unknown, `fullfield pack` has not
            finished, or there are fewer than two classes.
        ConfigError: `val_share` is not between 0 and 1.
    """
    root = Path(source)
    folder = root.parent if root.is_file() else root
    check_finished(folder)
    files, notes = find_archives(root, ".tar")
    found: dict[str, list[Found]] = {}
    for split, paths in files.items():
        shards: list[Shard] = []
        for parent, of_parent in groupby(paths, key=lambda path: path.parent):
            some, index_notes = shards_of(parent, of_parent)
            shards += some
            notes += index_notes
        notes += _notes(shards)
        found[split] = [
            Found(shard.archive.path / m.name, m.label, TarPlace(shard.archive, m.offset, m.size))
            for shard in shards
            for m in shard.members
        ]
    if any(found.values()) and all(image.label is None for part in found.values() for image in part):
        raise DataError(
            f"{root}: holds images without labels. Expected a file .cls, .json or .txt beside each image, of the same "
            "name. If its folders are the classes, unpack it; `fullfield pack` makes labelled shards of them."
        )
    return labelled_data(str(root), found, _class_names(folder), notes=notes, val_share=val_share, seed=seed)


def check_finished(folder: Path) -> None:
    """Raise DataError if `fullfield pack` was stopped before it had written all files of a folder."""
    path = folder / MANIFEST
    if not path.is_file():
        return
    try:
        finished = json.loads(path.read_text(encoding="utf-8"))["finished"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Pack the data again, or remove it.") from error
    if finished is not True:
        raise DataError(f"{folder}: was not packed to its end. Run the same `fullfield pack` again; it continues.")


def _notes(shards: Iterable[Shard]) -> list[str]:
    notes = [
        f"{shard.archive.path} {shard.problem}: the {len(shard.members)} images before that are used, any behind it "
        "are lost. Copy it again from its source."
        for shard in shards
        if shard.problem
    ]
    unpaired = sum(shard.unpaired for shard in shards)
    return [*notes, f"Labels in shards ignored because they have no image: {unpaired}."] if unpaired else notes


def _class_names(folder: Path) -> list[str] | None:
    """Return the names in `classes.json` (a list, or name -> number) or `classes.txt` (one a line), if there is one.

    Raises:
        DataError: The file is something else.
    """
    path = next((path for name in (CLASSES, CLASSES_TEXT) if (path := folder / name).is_file()), None)
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")
        names: Any = json.loads(text) if path.name == CLASSES else text.rstrip("\n").split("\n")
        if isinstance(names, dict):
            numbers = {int(number): name for name, number in names.items()}
            names = [numbers[number] for number in range(len(names))]
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise DataError(f"{path}: cannot be read as a list of class names ({error!r}). Mend it.") from error
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise DataError(f"{path}: expected the class names in the order of their numbers, none of them empty.")
    return [name.strip() for name in names]
