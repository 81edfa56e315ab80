"""Read object annotations in YOLO's form: a data.yaml, and one text file an image with one object a line.

A line is `class centre_x centre_y width height`, or `class x1 y1 x2 y2 ...` for a polygon; lengths are shares of the
image's width and height, so every image's header is read (https://docs.ultralytics.com/datasets/detect/). The labels
of `.../images/a.jpg` are `.../labels/a.txt`, or stand beside the image.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from fullfield.data.detection.annotations import AnnotationTable, Findings, ListedImage, Listing, Part
from fullfield.data.detection.checks import distinct_names, require_most_images
from fullfield.data.detection.image_files import FileNames, images_below, upright_size
from fullfield.data.detection.outline_checks import checked_polygons
from fullfield.data.image_data import canonical_split, quote_some
from fullfield.errors import DataError, ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["find_data_yaml", "read_yolo"]

NO_FILE = "Images skipped because their file is missing"
NO_HEADER = "Images skipped because their size cannot be read"
NO_LABELS = "Images without a label file, taken to hold no object"
NO_IMAGE = "Label files skipped because they have no image"
NO_FOLDER = "Test parts left out because their folder is missing"


@dataclass(frozen=True)
class DataYaml:
    """What a data.yaml says: names by class number, and the folders or lists of each split."""

    file: Path
    names: dict[int, str]
    splits: dict[str, tuple[str, ...]]
    root: str


def find_data_yaml(source: Path) -> Path | None:
    """Return the YAML file that describes a YOLO data set, or None.

    Args:
        source: That file, or the folder that holds it: data.yaml or the only one with "names" and "train".
    """
    if source.is_file():
        return source if source.suffix.lower() in (".yaml", ".yml") and _is_data_yaml(source) else None
    found = [path for suffix in ("yaml", "yml") for path in sorted(source.glob(f"*.{suffix}")) if _is_data_yaml(path)]
    named = [path for path in found if path.stem == "data"]
    return named[0] if named else found[0] if len(found) == 1 else None


def read_yolo(source: Path) -> Listing:
    """Read the annotations of every split of a YOLO data set.

    Args:
        source: The data.yaml, or the folder that holds it.

    Raises:
        DataError: The data.yaml or a line of labels is broken, a class is unknown, or most images are missing.
    """
    file = find_data_yaml(source)
    if file is None:
        raise DataError(f"{source}: has no data.yaml with 'names' and 'train'. Add one.")
    findings = Findings()
    data = _read_yaml(file)
    class_ids = sorted(data.names)
    classes = distinct_names([data.names[number] for number in class_ids], class_ids, findings, file)
    label_of = {number: label for label, number in enumerate(class_ids)}
    parts: dict[str, Part] = {}
    names, folders, first_id = FileNames(), defaultdict[Path, set[Path]](set), 1
    for split in ("train", "val", "test"):
        if not data.splits.get(split):
            continue
        paths = _images_of(data, split, findings)
        if paths:
            parts[split], served = _part(data, split, paths, label_of, first_id, names, findings)
            first_id += len(parts[split].images)
            for labels, images in served.items():
                folders[labels] |= images
    _count_without_image(folders, names, findings)
    return Listing(classes, tuple(class_ids), parts, findings)


def _is_data_yaml(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            lines = stream.read(1 << 20).splitlines()
    except OSError:
        return False
    return all(any(line.startswith(key) for line in lines) for key in (b"names:", b"train:"))


def _read_yaml(file: Path) -> DataYaml:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise DataError(f"{file}{line}: is not valid YAML ({getattr(error, 'problem', error)}). Mend it.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}). Save it as UTF-8 text.") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: needs the keys 'names', 'train' and 'val'.")
    splits = {}
    for key, value in content.items():
        split = canonical_split(str(key))
        if split is None or not value:
            continue
        if split in splits:
            raise DataError(f"{file}: two keys mean the split {split!r}, the second is {key!r}. Remove one.")
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(part, str) for part in values):
            raise DataError(f"{file}: {key!r} is {value!r}; it must be a folder, a .txt list of images, or several.")
        splits[split] = tuple(values)
    if "train" not in splits:
        raise DataError(f"{file}: has no 'train'. Name the folder of the training images.")
    names = _names(file, content.get("names"))
    count = content.get("nc", len(names))
    if count != len(names):
        raise DataError(f"{file}: 'nc' says {count!r} classes, but 'names' has {len(names)}. Correct one of them.")
    return DataYaml(file, names, splits, str(content.get("path") or ""))


def _names(file: Path, names: Any) -> dict[int, str]:
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise DataError(f"{file}: 'names' must be a list of the classes' names, or name them by number.")
    found = {}
    for number, name in names.items():
        if not str(number).isdecimal() or isinstance(name, list | dict) or not str(name).strip():
            raise DataError(f"{file}: the class {number!r}: {name!r} in 'names' needs a whole number and a name.")
        found[int(number)] = str(name).strip()
    return found


def _images_of(data: DataYaml, split: str, findings: Findings) -> list[Path]:
    """Return the paths of the images of a split, sorted, each once."""
    paths: list[Path] = []
    for value in data.splits[split]:
        places = _places(data, value)
        place = next((place for place in places if place.exists()), None)
        if place is None:
            if split == "test":  # often named without being there
                findings.add(NO_FOLDER, f"{data.file}, {value!r}")
                continue
            raise DataError(
                f"{data.file}: {split!r} is {value!r}, which does not exist; looked for "
                f"{quote_some(places)}. Correct it, or 'path'."
            )
        paths += images_below(place) if place.is_dir() else _listed(place)
    if not paths and split == "train":
        raise DataError(f"{data.file}: 'train' is {data.splits[split]}, which holds no images.")
    return sorted(set(paths), key=Path.as_posix)


def _places(data: DataYaml, value: str) -> list[Path]:
    """Return where a folder of the data.yaml may be meant to lie."""
    beside = data.file.parent
    # Roboflow writes "../train/images" for what lies beside its data.yaml.
    spellings = [value, value.removeprefix("../")]
    return list(dict.fromkeys(base / spelled for spelled in spellings for base in (beside / data.root, beside)))


def _listed(file: Path) -> list[Path]:
    """Return the paths in a list of images; relative ones count from the list's folder."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}). Save it as UTF-8 text with one path a line.") from error
    return [file.parent / line.strip() for line in lines if line.strip()]


def _part(
    data: DataYaml,
    split: str,
    paths: Sequence[Path],
    label_of: Mapping[int, int],
    first_id: int,
    names: FileNames,
    findings: Findings,
) -> tuple[Part, dict[Path, set[Path]]]:
    """Return a part, and for each folder of labels the folders of images that it serves."""
    images: list[ListedImage] = []
    missing: list[Path] = []
    folders: dict[Path, set[Path]] = {}
    table = AnnotationTable("line")
    for path in paths:
        if not names.has(path):
            missing.append(path)
            findings.add(NO_FILE, str(path))
            continue
        label_file = next((file for file in _label_files(path) if file.name in names.of(file.parent)), None)
        try:
            height, width = upright_size(path)
        except ImageError as error:
            missing.append(path)
            findings.add(NO_HEADER, str(error))
            continue
        if label_file is None:
            findings.add(NO_LABELS, str(path))
        else:
            folders.setdefault(label_file.parent, set()).add(path.parent)
            _add_lines(label_file, len(images), (width, height), label_of, table, findings)
        images.append(ListedImage(path, first_id + len(images), height, width))
    require_most_images(data.file, missing, len(paths), f"Check the files of {split!r}.")
    if split == "train" and not folders:
        raise DataError(
            f"{data.file}: no image of 'train' has a label file; for {paths[0]}, looked for "
            f"{quote_some(_label_files(paths[0]))}. Put the labels there."
        )
    return Part(images, table.finish()), folders


def _label_files(image: Path) -> list[Path]:
    """Return where the labels of an image may be: in the folder "labels" for its "images", or beside it."""
    beside = image.with_suffix(".txt")
    parts = list(beside.parts)
    for position in range(len(parts) - 2, -1, -1):
        if parts[position] == "images":
            parts[position] = "labels"
            return [Path(*parts), beside]
    return [beside]


def _count_without_image(folders: Mapping[Path, set[Path]], names: FileNames, findings: Findings) -> None:
    """Count the files in the folders of labels that have no image in the folders of images that these serve."""
    for labels, images in sorted(folders.items()):
        if labels in images:
            continue  # side by side, a text file may be anything
        stems = {Path(name).stem for folder in images for name in names.of(folder)}
        for name in sorted(names.of(labels)):
            if name.endswith(".txt") and name != "classes.txt" and Path(name).stem not in stems:
                findings.add(NO_IMAGE, str(labels / name))


def _add_lines(
    file: Path,
    image: int,
    size: tuple[int, int],
    label_of: Mapping[int, int],
    table: AnnotationTable,
    findings: Findings,
) -> None:
    """Add the objects of a file of labels; `size` is the width and height of its image."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}). Save it as UTF-8 text.") from error
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        where = f"{file}, line {number}"
        try:
            class_id, *shares = (float(word) for word in words)
        except ValueError as error:
            raise DataError(f"{where}: {line.strip()!r} is not a class and its numbers ({error}). Mend it.") from error
        if class_id not in label_of:
            raise DataError(
                f"{where}: the class {words[0]} is not listed; known are {quote_some(label_of, most=20)}. Add it to "
                "'names' or correct the line."
            )
        found = _object(shares, size, findings, where)
        if found is not None:
            box, outline = found
            table.append(file, number, image, box, label_of[int(class_id)], outline=outline)


def _object(
    shares: Sequence[float], size: tuple[int, int], findings: Findings, where: str
) -> tuple[Sequence[float], tuple[NDArray[np.float32], ...] | None] | None:
    """Return the box in pixels and the outline, if it has one, of an object; None for a polygon that is none."""
    if len(shares) == 4:
        (x, y, w, h), (width, height) = shares, size
        return ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height), None
    outline = checked_polygons([shares * np.resize(np.array(size), len(shares))], findings, lambda: where)
    if outline is None:
        return None
    (polygon,) = outline
    return (*polygon.min(axis=0).tolist(), *polygon.max(axis=0).tolist()), outline
