"""Find the files of a COCO data set: the JSON file of each split, and the folder that its images lie in.

COCO's own layout is `annotations/instances_train2017.json` beside `train2017/`. Others put the JSON files in the root
and the images into `images/`, or both into a folder for each split (`train/_annotations.coco.json`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from fullfield.data.detection.image_files import FileNames
from fullfield.data.image_data import SPLITS, canonical_split, quote_some
from fullfield.errors import DataError

__all__ = ["coco_files", "image_folder", "looks_like_coco"]

GLANCE = 65_536  # bytes at either end of a JSON file
TRIED = 50  # names, to find the folder of the images


def coco_files(source: Path) -> dict[str, Path]:
    """Return the JSON file of each split; empty if there are none.

    A single file, whatever its name, is the training part.

    Args:
        source: A folder, or one JSON file.

    Raises:
        DataError: Two files belong to the same split, or it cannot be told which one is for training.
    """
    if source.is_file():
        return {"train": source} if looks_like_coco(source) else {}
    found = _instance_files(source)
    if len(found) == 1:
        return {"train": found[0]}
    files: dict[str, Path] = {}
    for path in found:
        split = _split_of(path)
        if split is None:
            continue
        if split in files:
            raise DataError(f"{source}: both {files[split]} and {path} are of the split {split!r}. Remove or name one.")
        files[split] = path
    if found and "train" not in files:
        raise DataError(
            f"{source}: none of {quote_some(path.relative_to(source) for path in found)} says by its name that it is "
            "for training. Name it instances_train.json, or name that one file instead of the folder."
        )
    return {split: files[split] for split in SPLITS if split in files}


def looks_like_coco(path: Path) -> bool:
    """Say, from the beginning and the end of a file, whether it is a JSON file of COCO's instances."""
    if path.suffix.lower() != ".json":
        return False
    try:
        with path.open("rb") as stream:
            text = stream.read(GLANCE)
            size = stream.seek(0, 2)
            stream.seek(max(len(text), size - GLANCE))
            text += stream.read(GLANCE)
    except OSError:
        return False
    if not text.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") or b'"segments_info"' in text or b'"caption"' in text:
        return False
    return any(key in text for key in (b'"images"', b'"annotations"')) and any(
        key in text for key in (b'"categories"', b'"category_id"', b'"bbox"', b'"file_name"')
    )


def image_folder(json_file: Path, source: Path, names: Sequence[str]) -> Path:
    """Return the folder that the images of a JSON file lie in: of those usual, the one that holds most of them.

    Args:
        json_file: The annotations.
        source: What the user named: the folder of the data set, or this file.
        names: The images' names, as the file gives them.

    Raises:
        DataError: None of these folders holds any of the images.
    """
    if not names:
        return json_file.parent
    tried = names[:: max(1, len(names) // TRIED)]
    listing = FileNames()
    folders = list(dict.fromkeys(_usual_folders(json_file, source)))
    hits = [sum(listing.has(folder / name) for name in tried) for folder in folders]
    if not any(hits):
        raise DataError(
            f"{json_file}: none of its images was found, for instance {names[0]!r}; looked in "
            f"{quote_some([folder for folder in folders if folder.is_dir()], most=12)}. Put them beside the file or "
            "into a folder 'images'."
        )
    return folders[hits.index(max(hits))]


def _usual_folders(json_file: Path, source: Path) -> Iterator[Path]:
    bases = [json_file.parent, source if source != json_file else json_file.parent]
    if json_file.parent.name.lower() == "annotations":
        bases.insert(0, json_file.parent.parent)
    words = [word for word in re.split(r"[._-]+", json_file.stem) if word and canonical_split(_letters(word))]
    if words:
        words.append(canonical_split(_letters(words[0])) or words[0])
    for base in bases:
        for word in words:
            yield from (base / word, base / "images" / word, base / word / "images")
        yield from (base / "images", base)


def _instance_files(source: Path) -> list[Path]:
    """Return the JSON files of instances in the folder for annotations, in the root, or in folders for the splits."""
    try:
        folders = sorted(path for path in source.iterdir() if path.is_dir())
    except OSError as error:
        raise DataError(f"{source}: cannot be listed ({error.strerror}). Check its permissions.") from error
    places = [
        [folder for folder in folders if folder.name.lower() == "annotations"],
        [source],
        [folder for folder in folders if canonical_split(folder.name)],
    ]
    for group in places:
        found = [path for folder in group for path in sorted(folder.glob("*.json")) if looks_like_coco(path)]
        # COCO's folder also holds files of captions, keypoints and sizes of images without annotations.
        instances = [path for path in found if path.name.startswith("instances")]
        if found:
            return instances or found
    return []


def _split_of(path: Path) -> str | None:
    """Return the split that a file's name tells, or its folder's: "instances_val2017.json" is of "val"."""
    words = (_letters(word) for word in re.split(r"[._-]+", path.stem))
    return next((split for word in words if (split := canonical_split(word))), None) or canonical_split(
        path.parent.name
    )


def _letters(word: str) -> str:
    return word.rstrip("0123456789")
