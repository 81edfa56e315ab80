"""Which archives of images a folder holds, and to which split each belongs.

Shards and Parquet files come in the same three ways: beside each other with the split in their names
(`train-000000.tar`, `train-00000-of-00002.parquet`), in folders named after the splits, or in a folder `data` as
repositories of the Hugging Face hub have it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from fullfield.data.image import IMAGE_EXTENSIONS
from fullfield.data.image_data import canonical_split, quote_some
from fullfield.errors import DataError

__all__ = ["COMPRESSED", "archive_kind", "find_archives"]

KINDS = {".tar": "tar shards", ".parquet": "Parquet files", ".arrow": "Arrow files"}
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
# Each marks what `datasets.save_to_disk` wrote: several splits, or one.
SAVED_MARKS = ("dataset_dict.json", "state.json")


@dataclass
class _Listing:
    """What one folder holds directly, hidden entries left out, sorted."""

    archives: dict[str, list[Path]] = field(default_factory=dict)
    compressed: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    images: int = 0


def archive_kind(root: Path) -> str | None:
    """Return ".tar", ".parquet" or ".arrow" if `root` is a folder of such archives, None if it is one of images.

    Raises:
        DataError: It holds archives of two kinds, archives beside folders of images, or compressed shards.
    """
    if any((root / mark).is_file() for mark in SAVED_MARKS):
        return ".arrow"
    listing = _list(root)
    kinds = {suffix: files[0] for suffix, files in listing.archives.items()}
    inner = _inner(listing)
    for part in inner.values():
        kinds |= {suffix: files[0] for suffix, files in part.archives.items() if suffix not in kinds}
    kinds.pop(".arrow", None)  # without the JSON files beside them nothing says what they hold
    if not kinds:
        if listing.compressed and not listing.folders and not listing.images:
            raise compressed_error(listing.compressed[0])
        return None
    if len(kinds) > 1:
        both = " and ".join(f"{KINDS[suffix]} ({file.name})" for suffix, file in sorted(kinds.items()))
        raise DataError(f"{root}: holds both {both}. Keep one kind in the folder.")
    ((suffix, file),) = kinds.items()
    others = [folder.name for folder in listing.folders if folder not in inner]
    if others or listing.images:
        besides = f"the folders {quote_some(others)}" if others else f"{listing.images} images"
        raise DataError(
            f"{root}: holds {KINDS[suffix]} ({file.name}) and {besides} beside them. Keep one kind in the folder."
        )
    return suffix


def find_archives(root: Path, suffix: str) -> tuple[dict[str, list[Path]], list[str]]:
    """Return the archives of a folder by split, sorted by name, and the notes on them.

    If no name tells a split, all archives are "train".

    Args:
        root: A folder for which `archive_kind` is `suffix`, or one such file.
        suffix: ".tar" or ".parquet".

    Raises:
        DataError: Some names tell a split and others do not.
    """
    if root.is_file():
        return {"train": [root]}, []
    listing = _list(root)
    found: dict[str, list[Path]] = {}
    unnamed: list[Path] = []
    places = [(None, listing), *_inner(listing).items()]
    for folder, part in places:
        of_folder = None if folder is None else canonical_split(folder.name)
        for file in part.archives.get(suffix, []):
            split = of_folder or _split_of(file)
            (unnamed if split is None else found.setdefault(split, [])).append(file)
    if unnamed and found:
        raise DataError(
            f"{root}: {len(unnamed)} of its {KINDS[suffix]} do not tell their split by their names: "
            f"{quote_some(file.name for file in unnamed)}. Rename them, such as train-{unnamed[0].name}."
        )
    if unnamed:
        return {"train": unnamed}, []
    return found, []


def compressed_error(path: Path) -> DataError:
    """Return the error for a compressed tar file."""
    return DataError(
        f"{path}: is compressed, and the members of a compressed tar file cannot be read in any order. Images hardly "
        "shrink: unpack it to a plain .tar (gunzip, unzstd, ...) first."
    )


def _list(folder: Path) -> _Listing:
    listing = _Listing()
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}). Check its permissions.") from error
    for entry in entries:
        suffix = entry.suffix.lower()
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if suffix in KINDS and entry.is_file():
            listing.archives.setdefault(suffix, []).append(entry)
        elif entry.name.lower().endswith(COMPRESSED):
            listing.compressed.append(entry)
        elif suffix in IMAGE_EXTENSIONS:
            listing.images += 1
        elif entry.is_dir():
            listing.folders.append(entry)
    return listing


def _inner(listing: _Listing) -> dict[Path, _Listing]:
    """Return the folders `data`, `train`, ... that hold archives and neither folders nor images."""
    named = [f for f in listing.folders if f.name == "data" or canonical_split(f.name) is not None]
    parts = {folder: _list(folder) for folder in named}
    return {folder: part for folder, part in parts.items() if part.archives and not part.folders and not part.images}


def _split_of(file: Path) -> str | None:
    """Return the split that a word of the file's name tells: imagenet-train-0001.tar, val_3.parquet."""
    words = re.split(r"[-_. ]", file.stem)
    return next((split for split in map(canonical_split, words) if split is not None), None)
