"""Find the images of a data set and their label maps, and pair them by name.

Three arrangements of folders are known, with `masks`, `labels` or `annotations` for the label maps:

    root/images/*            root/masks/*
    root/images/train/*      root/masks/train/*
    root/train/images/*      root/train/masks/*

A label map has the name of its image, or that with _mask, _label or _seg behind it; both may lie in subfolders of equal
names. Links to folders inside these are not followed.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from fullfield.data.image import IMAGE_EXTENSIONS
from fullfield.data.image_data import SPLITS, canonical_split, quote_some
from fullfield.data.segmentation.label_image import LOSSY_EXTENSIONS, MASK_EXTENSIONS
from fullfield.data.segmentation.label_maps import SegmentationSample
from fullfield.errors import DataError

__all__ = ["find_folders", "folder_files", "images_below", "pair_files"]

IMAGES = "images"
MASKS = ("masks", "labels", "annotations")
ENDINGS = ("_mask", "_label", "_seg")


def find_folders(root: Path) -> dict[str, tuple[Path, Path | None]]:
    """Return (folder of images, folder of label maps) of each split, "train" where there are none; or nothing.

    The second is None where a split of images has no label maps, which is common of published test parts.

    Raises:
        DataError: A folder cannot be listed, or two folders mean the same.
    """
    folders = _folders(root)
    splits = _by_split(root, folders)
    found: dict[str, tuple[Path, Path | None]] = {}
    for split, folder in splits.items():
        inside = _folders(folder)
        if IMAGES in inside:
            found[split] = (inside[IMAGES], _mask_folder(folder, inside))
    if any(masks for _, masks in found.values()):
        return found
    masks = _mask_folder(root, folders)
    if IMAGES not in folders or masks is None:
        return {}
    image_parts = _by_split(folders[IMAGES], _folders(folders[IMAGES]))
    mask_parts = _by_split(masks, _folders(masks))
    if "train" in image_parts and "train" in mask_parts:
        return {split: (folder, mask_parts.get(split)) for split, folder in image_parts.items()}
    return {"train": (folders[IMAGES], masks)}


def _folders(folder: Path) -> dict[str, Path]:
    """Return the folders in a folder by their names in small letters."""
    try:
        found = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}). Check its permissions.") from error
    return {path.name.lower(): path for path in found}


def _mask_folder(parent: Path, folders: Mapping[str, Path]) -> Path | None:
    """Return the one folder that holds image files under a name of label maps."""
    found = [folders[name] for name in MASKS if name in folders and _holds_images(folders[name])]
    if len(found) > 1:
        raise DataError(
            f"{parent}: {quote_some(path.name for path in found)} could all hold the label maps; leave one of them."
        )
    return found[0] if found else None


def _holds_images(folder: Path) -> bool:
    """Tell whether images lie in or below a folder; where JSON or XML lies beside them it is of boxes, as in COCO."""
    if any(path.suffix.lower() in (".json", ".xml") for path in folder.iterdir()):
        return False
    return any(
        Path(name).suffix.lower() in IMAGE_EXTENSIONS and not name.startswith(".")
        for _, _, names in os.walk(folder)
        for name in names
    )


def _by_split(parent: Path, folders: Mapping[str, Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in folders.values():
        split = canonical_split(folder.name)
        if split in found:
            raise DataError(
                f"{parent}: both {found[split].name!r} and {folder.name!r} mean the split {split!r}. Merge them or "
                "rename one."
            )
        if split is not None:
            found[split] = folder
    return {split: found[split] for split in SPLITS if split in found}


def images_below(folder: Path, extensions: Collection[str]) -> list[Path]:
    """Return the files at any depth below a folder whose extension is one of these, sorted; hidden ones left out.

    Raises:
        DataError: A folder cannot be listed.
    """
    found: list[Path] = []

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror}). Check its permissions.") from error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        found += [
            Path(parent, name)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in extensions  # noqa: PTH122 - for speed
        ]
    return sorted(found, key=Path.as_posix)


def folder_files(images: Path, masks: Path | None) -> tuple[dict[str, Path], dict[str, Path]]:
    """List the images and the label maps of one split, each under the name by which they belong together.

    Args:
        images: A folder.
        masks: Another, or None if there is none.

    Raises:
        DataError: A folder cannot be listed; two files have one name; or label maps are of a lossy format.
    """
    image_files: dict[str, Path] = {}
    for path in images_below(images, IMAGE_EXTENSIONS):
        _add(image_files, path.relative_to(images).with_suffix("").as_posix(), path, "images")
    mask_files: dict[str, Path] = {}
    if masks is None or not masks.is_dir():
        return image_files, mask_files
    found = images_below(masks, MASK_EXTENSIONS | LOSSY_EXTENSIONS)
    lossy = [path for path in found if path.suffix.lower() in LOSSY_EXTENSIONS]
    if lossy:
        raise DataError(
            f"{masks}: {len(lossy)} of {len(found)} label maps are JPEG or WebP ({quote_some(lossy, 2)}), whose lossy "
            "compression changes the values of pixels at the edges of classes. Export them again as PNG."
        )
    for path in found:
        name = path.relative_to(masks).with_suffix("").as_posix()
        if name not in image_files:
            name = next((name.removesuffix(end) for end in ENDINGS if name.removesuffix(end) in image_files), name)
        _add(mask_files, name, path, "label maps")
    return image_files, mask_files


def _add(files: dict[str, Path], name: str, path: Path, what: str) -> None:
    if name in files:
        raise DataError(f"{path.parent}: the {what} {files[name].name!r} and {path.name!r} have one name. Remove one.")
    files[name] = path


def pair_files(
    source: str, split: str, images: Mapping[str, Path], masks: Mapping[str, Path]
) -> tuple[tuple[SegmentationSample, ...], list[str]]:
    """Put images and label maps of equal names together, in the order of the names.

    Args:
        source: What the user named, for messages.
        split: Of these files.
        images: Files by name.
        masks: Likewise.

    Returns:
        The samples, and sentences on what was skipped.

    Raises:
        DataError: More than half of the images have no label map, or the reverse.
    """
    samples = tuple(SegmentationSample(images[name], masks[name]) for name in sorted(images) if name in masks)
    notes = []
    for what, other, files, others in (("images", "label map", images, masks), ("label maps", "image", masks, images)):
        alone = [files[name] for name in sorted(files) if name not in others]
        if 2 * len(alone) > len(files):
            raise DataError(
                f"{source}: {len(alone)} of {len(files)} {what} of the {split} part have no {other}: "
                f"{quote_some(alone, 3)}. A label map has the name of its image, or that with "
                f"{', '.join(ENDINGS)} behind it."
            )
        if alone:
            notes.append(
                f"Skipped {len(alone)} of {len(files)} {what} of the {split} part, which have no {other}: "
                f"{quote_some(path.name for path in alone)}."
            )
    return samples, notes
