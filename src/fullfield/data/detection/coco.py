"""Read object annotations in COCO's JSON form (https://cocodataset.org/#format-data).

One file holds the lists `images`, `annotations` and `categories`, tied together by ids. COCO's own training file has
860,000 annotations, so each field is gathered in one pass over the list and looked at one by one only where
something is amiss.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from fullfield.data.detection.annotations import Annotations, Findings, ListedImage, Listing, Part
from fullfield.data.detection.checks import distinct_names, require_most_images
from fullfield.data.detection.coco_layout import coco_files, image_folder
from fullfield.data.detection.image_files import FileNames, upright_size
from fullfield.data.detection.outline_checks import checked_polygons, checked_rle
from fullfield.data.image_data import quote_some
from fullfield.errors import DataError, ImageError

__all__ = ["read_coco"]

NO_FILE = "Images skipped, with their annotations, because their file is missing"
NO_HEADER = "Images skipped, with their annotations, because they have no size in the list and no readable header"
TWICE = "Images listed more than once under different ids, each kept as an image of its own"
NO_IMAGE = "Annotations skipped because no listed image has their image_id"
NO_OUTLINE_FORM = "Outlines left out because they are neither polygons nor RLE"


def read_coco(source: Path) -> Listing:
    """Read the annotations of every split of a COCO data set; no image is decoded.

    The classes are the categories of the training file, in the order of their ids, also those without objects.

    Args:
        source: The folder of the data set, or one JSON file.

    Raises:
        DataError: A file is no COCO file, contradicts itself or another, or most of its images are missing.
    """
    findings = Findings()
    files = coco_files(source)
    known: dict[int, str] = {}
    parts = {}
    for split, path in files.items():  # "train" comes first; one file at a time, for its parsed text takes gigabytes
        content = _load(path)
        categories = _categories(path, content["categories"])
        if known:
            _require_same(known, categories, files["train"], path)
        known = known or categories
        parts[split] = _part(path, source, content, list(known), findings)
    names = distinct_names(tuple(known.values()), tuple(known), findings, files["train"])
    return Listing(names, tuple(known), parts, findings)


def _load(path: Path) -> dict[str, list[Any]]:
    """Return the three lists of a file."""
    try:
        content = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}, column {error.colno}: is not valid JSON ({error.msg}). The file may be cut "
            "off; copy it again from its source."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from error
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"{path}: is not valid JSON ({error}). Check where it comes from.") from error
    except RecursionError as error:
        raise DataError(f"{path}: is nested too deeply to be a COCO file. Check where it comes from.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Check the path and its permissions.") from error
    lists = {}
    for key in ("images", "annotations", "categories"):
        value = content.get(key) if isinstance(content, dict) else None
        if not isinstance(value, list) or not all(type(entry) is dict for entry in value):
            raise DataError(
                f"{path}: has no list {key!r} of objects; a COCO file has 'images', 'annotations' and 'categories'. "
                "A file of predictions or of images alone is not enough."
            )
        lists[key] = value
    return lists


def _categories(path: Path, entries: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Return the names by id, in the order of the ids."""
    names: dict[int, str] = {}
    for entry in entries:
        category_id, name = entry.get("id"), entry.get("name")
        if not _is_whole(category_id) or not isinstance(name, str) or not name.strip():
            raise DataError(f"{path}: the category {entry!r} needs an 'id', a whole number, and a 'name'.")
        if category_id in names:
            raise DataError(f"{path}: the category id {category_id} is that of {names[category_id]!r} and of {name!r}.")
        names[category_id] = name.strip()
    if not names:
        raise DataError(f"{path}: the list 'categories' is empty; it must name the classes.")
    return dict(sorted(names.items()))


def _require_same(known: Mapping[int, str], other: Mapping[int, str], train: Path, path: Path) -> None:
    for category_id, name in other.items():
        if known.get(category_id) != name:
            raise DataError(
                f"{path}: the category id {category_id} is {name!r}, but {train} has "
                f"{repr(known[category_id]) if category_id in known else 'no such id'}. Use the same categories in all "
                "files."
            )


def _part(
    path: Path, source: Path, content: Mapping[str, list[Any]], category_ids: Sequence[int], findings: Findings
) -> Part:
    images, listed = _images(path, source, content["images"], findings)
    positions = {image.image_id: position for position, image in enumerate(images)}
    entries, image_positions = _with_image(path, content["annotations"], positions, listed, findings)
    label_of = {category_id: label for label, category_id in enumerate(category_ids)}
    try:
        labels = [label_of.get(entry.get("category_id"), -1) for entry in entries]  # type: ignore[arg-type]
    except TypeError as error:  # a list or an object as id
        raise DataError(f"{path}: an annotation's category_id is not a number ({error}). Mend it.") from error
    ids = [
        number if _is_whole(number := entry.get("id")) else position for position, entry in enumerate(entries, start=1)
    ]
    if -1 in labels:
        first = labels.index(-1)
        raise DataError(
            f"{path}: annotation {ids[first]} has the category id {entries[first].get('category_id')!r}, which is not "
            f"listed; known are {quote_some(category_ids, most=20)}. Add the category or remove the annotation."
        )
    outlines = [
        _outline(entry, images[position], findings, path, number) if entry.get("segmentation") else None
        for entry, position, number in zip(entries, image_positions, ids, strict=True)
    ]
    areas = np.array([_number(entry.get("area")) for entry in entries], dtype=np.float64)
    areas[~(np.isfinite(areas) & (areas > 0))] = np.nan
    return Part(
        images,
        Annotations(
            _boxes(entries),
            np.array(labels, dtype=np.int64),
            np.array([bool(entry.get("iscrowd")) for entry in entries], dtype=np.bool_),
            areas,
            np.array(ids, dtype=np.int64),
            np.array(image_positions, dtype=np.int64),
            outlines,
            lambda position: f"{path}, annotation {ids[position]}",
        ),
    )


def _images(
    path: Path, source: Path, entries: Sequence[Mapping[str, Any]], findings: Findings
) -> tuple[list[ListedImage], set[int]]:
    """Return the images that are there, in the order of their ids, and the ids of all that are listed."""
    names: dict[int, str] = {}
    for entry in entries:
        image_id, name = entry.get("id"), entry.get("file_name")
        if not _is_whole(image_id):
            raise DataError(f"{path}: the image {name!r} has the id {image_id!r}; an id must be a whole number.")
        if not isinstance(name, str) or not name:
            raise DataError(f"{path}: the image with id {image_id} has no 'file_name'. Add it.")
        if image_id in names:
            raise DataError(
                f"{path}: the image id {image_id} is given twice, to {names[image_id]!r} and {name!r}. Give each image "
                "an id of its own."
            )
        names[image_id] = name
    spelled = [name.replace("\\", "/") for name in names.values()]
    folder, present = image_folder(path, source, spelled), FileNames()
    images, missing, seen = [], [], set()
    for entry, name in zip(entries, spelled, strict=True):
        file, image_id = folder / name, entry["id"]
        where = f"{path}, image {image_id}, {file}"
        if not present.has(file):
            missing.append(file)
            findings.add(NO_FILE, where)
            continue
        if file in seen:
            findings.add(TWICE, where)
        seen.add(file)
        height, width = entry.get("height"), entry.get("width")
        if not (_is_length(height) and _is_length(width)):
            try:
                height, width = upright_size(file)
            except ImageError as error:
                missing.append(file)
                findings.add(NO_HEADER, f"{where}: {error}")
                continue
        images.append(ListedImage(file, image_id, int(height), int(width)))
    require_most_images(
        path, missing, len(entries), f"Images are looked for in {folder}; mend the names or the folder."
    )
    return sorted(images, key=lambda image: image.image_id), set(names)


def _with_image(
    path: Path,
    entries: Sequence[Mapping[str, Any]],
    positions: Mapping[int, int],
    listed: set[int],
    findings: Findings,
) -> tuple[list[Mapping[str, Any]], list[int]]:
    """Return the annotations whose image is there, with its position."""
    try:
        found = [positions.get(entry.get("image_id"), -1) for entry in entries]  # type: ignore[arg-type]
    except TypeError as error:
        raise DataError(f"{path}: an annotation's image_id is not a number ({error}). Mend it.") from error
    if -1 not in found:
        return list(entries), found
    for entry, position in zip(entries, found, strict=True):
        if position < 0 and entry.get("image_id") not in listed:  # those of missing files are counted with them
            findings.add(NO_IMAGE, f"{path}, annotation {entry.get('id')}, image_id {entry.get('image_id')!r}")
    kept = [(entry, position) for entry, position in zip(entries, found, strict=True) if position >= 0]
    return [entry for entry, _ in kept], [position for _, position in kept]


def _boxes(entries: Sequence[Mapping[str, Any]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return COCO's left, top, width, height as (N, 4) left, top, right, bottom; NaN where it is not four numbers."""
    boxes = [entry.get("bbox") for entry in entries]
    try:
        xywh = np.array(boxes, dtype=np.float64).reshape(len(boxes), 4)
    except (TypeError, ValueError, OverflowError):  # of other lengths, or not numbers
        rows = (box if isinstance(box, list) and len(box) == 4 else [math.nan] * 4 for box in boxes)
        xywh = np.array([[_number(value) for value in row] for row in rows], dtype=np.float64).reshape(-1, 4)
    xywh[:, 2:] += xywh[:, :2]
    return xywh


def _outline(entry: Mapping[str, Any], image: ListedImage, findings: Findings, path: Path, number: int) -> Any:
    def where() -> str:
        return f"{path}, annotation {number}"

    outline = entry["segmentation"]
    if isinstance(outline, list):
        return checked_polygons(outline, findings, where)
    if isinstance(outline, dict):
        return checked_rle(outline, image.height, image.width, findings, where)
    findings.add(NO_OUTLINE_FORM, where())
    return None


def _is_whole(value: Any) -> TypeGuard[int]:
    return type(value) is int and -(2**63) <= value < 2**63


def _is_length(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and 1 <= value < 2**31


def _number(value: Any) -> float:
    return float(value) if type(value) in (int, float) and abs(value) < 1e300 else math.nan
