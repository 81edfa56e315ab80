"""Read a classification data set from folders: `root/class/*`, or `root/train/class/*` beside val and test.

A folder is walked by `os.scandir`, links are followed, and each folder is entered once, so that a link to
an ancestor ends. A folder named `train` counts as a split only if it holds folders: it may as well be the
class of trains beside that of buses.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fullfield.data.image import IMAGE_EXTENSIONS
from fullfield.data.image_data import ImageData, Sample, canonical_split, quote_some
from fullfield.data.split import with_validation
from fullfield.errors import DataError, nearest

__all__ = ["read_folder"]

LAYOUT = (
    "Make one folder for each class (cat/1.jpg, dog/1.jpg, ...), or write a CSV file with the columns path and label."
)


@dataclass
class Listing:
    """What one folder holds directly, hidden entries left out, in the order of the names."""

    folders: list[Path] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)
    others: list[str] = field(default_factory=list)  # extensions, or what else the entry is


def read_folder(root: str | Path, *, val_share: float = 0.15, seed: int = 0) -> ImageData:
    """Read the classes and images below a folder.

    With `root/train/class/*`, the folders `val` (or `valid`, `validation`) and `test` are used as they are,
    in any case; otherwise the folders in `root` are the classes. Where there is no validation part, one is
    cut from the training part. Images may lie at any depth inside a class folder. The classes are the names
    of the training folders, sorted.

    Args:
        root: The folder.
        val_share: The share of each class to cut for validation, where none is given.
        seed: Decides which images that cut takes.

    Raises:
        DataError: There are no images, no class folders, an empty one, fewer than two, or one in val or
            test that train lacks.
        ConfigError: `val_share` is not between 0 and 1.
    """
    root = Path(root)
    listing = _list(root)
    split_folders = _split_folders(root, listing)
    notes = []
    if split_folders:
        unused = sorted(f.name for f in listing.folders if f not in split_folders.values())
        if unused:
            notes.append(f"Folders ignored beside the splits: {quote_some(unused)}.")
    else:
        split_folders = {"train": root}

    ignored: Counter[str] = Counter()
    unlabelled = len(listing.images)
    splits: dict[str, dict[str, list[Path]]] = {}
    for split, folder in split_folders.items():
        inside = listing if folder == root else _list(folder)
        if folder != root:
            unlabelled += len(inside.images)
            ignored.update(inside.others)
        splits[split] = {
            class_folder.name: _images_below(class_folder, (root, folder), ignored) for class_folder in inside.folders
        }

    classes = tuple(sorted(splits["train"]))
    _check(root, split_folders, splits, unlabelled)
    for split in ("val", "test"):
        if split in splits:
            missing = sorted(set(classes) - set(splits[split]))
            if missing and splits[split]:
                notes.append(f"The {split} part has no folder for {quote_some(missing)}.")
    if unlabelled:
        notes.append(f"Images ignored because they lie outside of any class folder: {unlabelled}.")
    if ignored:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(ignored.items()))
        notes.append(f"Files ignored because they are not images: {ignored.total()} ({kinds}).")

    labels = {name: label for label, name in enumerate(classes)}
    samples = {
        split: tuple(Sample(path, labels[name]) for name in sorted(found) for path in found[name])
        for split, found in splits.items()
        if found
    }
    samples, split_notes = with_validation(samples, val_share, seed)
    return ImageData(str(root), classes, samples, tuple(split_notes + notes))


def _list(folder: Path) -> Listing:
    """List a folder.

    Raises:
        DataError: It cannot be read.
    """
    listing = Listing()
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}). Check its permissions.") from error
    for entry in entries:
        # macOS leaves the folder __MACOSX, full of hidden files, in archives.
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        path = folder / entry.name
        kind = _kind(entry)
        if kind == "folder":
            listing.folders.append(path)
        elif kind != "file":
            listing.others.append(kind)
        elif path.suffix.lower() in IMAGE_EXTENSIONS:
            listing.images.append(path)
        else:
            listing.others.append(path.suffix.lower() or "without extension")
    return listing


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except OSError:  # a link to itself, or into a folder that this user may not enter
        return "broken link"
    return "broken link" if entry.is_symlink() else "special file"


def _split_folders(root: Path, listing: Listing) -> dict[str, Path]:
    """Return the split folders of `root`, or nothing if its folders are classes.

    Raises:
        DataError: Two folders mean the same split, or there are splits but none to train on.
    """
    found: dict[str, Path] = {}
    for folder in listing.folders:
        split = canonical_split(folder.name)
        if split is None:
            continue
        if split in found:
            raise DataError(
                f"{root}: both {found[split].name!r} and {folder.name!r} mean the split {split!r}. "
                "Merge them or rename one."
            )
        found[split] = folder
    if not found:
        return {}
    only_splits = len(found) == len(listing.folders)
    if "train" not in found:
        if only_splits:
            raise DataError(
                f"{root}: has {quote_some(f.name for f in found.values())} but no folder 'train'. Add "
                f"{root / 'train'} with one folder for each class."
            )
        return {}
    return found if only_splits or _list(found["train"]).folders else {}


def _images_below(folder: Path, ancestors: Iterable[Path], ignored: Counter[str]) -> list[Path]:
    """Return all images at any depth below `folder`, sorted; count in `ignored` what is none."""
    entered = {_identity(ancestor) for ancestor in ancestors}
    images: list[Path] = []
    pending = [folder]
    while pending:
        current = pending.pop()
        identity = _identity(current)
        if identity in entered:
            continue
        entered.add(identity)
        listing = _list(current)
        pending += listing.folders
        images += listing.images
        ignored.update(listing.others)
    return sorted(images, key=Path.as_posix)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _check(root: Path, folders: dict[str, Path], splits: dict[str, dict[str, list[Path]]], unlabelled: int) -> None:
    """Raise DataError if the classes found cannot be trained on."""
    train, where = splits["train"], folders["train"]
    if not train:
        if unlabelled:
            raise DataError(f"{where}: holds {unlabelled} images but no class folders. {LAYOUT}")
        raise DataError(f"{where}: holds no images. {LAYOUT}")
    if not any(images for found in splits.values() for images in found.values()):
        raise DataError(
            f"{root}: holds no images in its {len(train)} class folders. Expected files ending in "
            f"{', '.join(sorted(IMAGE_EXTENSIONS))}."
        )
    empty = [
        str((folders[split] / name).relative_to(root))
        for split, found in splits.items()
        for name, images in sorted(found.items())
        if not images
    ]
    if empty:
        raise DataError(
            f"{root}: {len(empty)} class folder{'s' * (len(empty) > 1)} without images: {quote_some(empty)}. "
            "Put images there, or remove what is not a class."
        )
    for split in ("val", "test"):
        foreign = sorted(set(splits.get(split, {})) - set(train))
        if foreign:
            hint = nearest(foreign[0], train) or "."
            raise DataError(
                f"{folders[split]}: class folders that {where} lacks: {quote_some(foreign)}{hint} "
                f"Rename or remove them, or add training images."
            )
    if len(train) == 1:
        (only,) = train
        message = f"{where}: has only one class, {only!r}; a classifier needs at least two."
        inner = _list(where / only).folders
        if len(inner) > 1:
            message += f" If the folders inside it are the classes, pass {where / only}."
        else:
            message += f" {LAYOUT}"
        raise DataError(message)
