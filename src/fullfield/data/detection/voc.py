"""Read object annotations in Pascal VOC's form: one XML file an image (http://host.robots.ox.ac.uk/pascal/VOC/).

VOC numbers pixels from 1 and means a box's last pixel to be inside, so a box over a whole image of 640 × 480 is
1, 1, 640, 480 there and 0, 0, 640, 480 here. Objects marked difficult are neither to be found nor counted as wrong in
VOC's evaluation; here they are crowds. Outlines are not read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from fullfield.data.detection.annotations import AnnotationTable, Findings, ListedImage, Listing, Part
from fullfield.data.detection.checks import require_most_images
from fullfield.data.detection.image_files import images_below, upright_size
from fullfield.data.image_data import canonical_split
from fullfield.errors import DataError, ImageError

__all__ = ["has_voc", "read_voc"]

IMAGE_FOLDERS = ("jpegimages", "images")
NO_FILE = "Annotation files skipped because their image is missing"
NO_HEADER = "Images skipped because neither their annotation nor a readable header gives their size"
NO_XML = "Images skipped because they have no annotation file; an image without objects needs one too"
NOT_LISTED = "Annotation files skipped because no list of a split has them"


@dataclass(frozen=True)
class Folders:
    """Where one part lies: XML files, images, and the stems of those that belong to it (None: all)."""

    annotations: Path
    images: Path
    stems: tuple[str, ...] | None = None


def has_voc(source: Path) -> bool:
    """Say whether a folder holds annotations in VOC's form."""
    if not source.is_dir():
        return False
    places = _folders(source)
    first = next((path for place in places.values() for path in place.annotations.glob("*.xml")), None)
    if first is None:
        return False
    try:
        with first.open("rb") as stream:
            return b"<annotation" in stream.read(4096).replace(b"\0", b"")
    except OSError:
        return False


def read_voc(source: Path) -> Listing:
    """Read the annotations of every split of a VOC data set; images are opened only for sizes that the XML lacks.

    Either `Annotations/*.xml` beside `JPEGImages/`, with the lists `ImageSets/Main/{train,val,trainval,test}.txt` where
    there are any, or images and XML files side by side, in one folder or in one for each split. The classes are all
    names that occur, sorted; their ids count from 1.

    Args:
        source: The folder.

    Raises:
        DataError: An XML file is broken, an object has no name, or most images are missing.
    """
    findings = Findings()
    places = _folders(source)
    if "train" not in places:
        raise DataError(f"{source}: has no training part; it has {', '.join(places)}. Add ImageSets/Main/train.txt.")
    _count_unlisted(places, findings)
    trees = {split: _trees(place) for split, place in places.items()}
    names = {
        _name(file, number, item)
        for found in trees.values()
        for file, tree in found
        for number, item in enumerate(tree.iterfind("object"), start=1)
    }
    classes = tuple(sorted(names))
    if not classes:
        raise DataError(f"{source}: none of its annotation files has an object to learn from.")
    label_of = {name: label for label, name in enumerate(classes)}
    parts, first_id = {}, 1
    for split, found in trees.items():
        parts[split] = _part(places[split], found, label_of, first_id, findings)
        first_id += len(parts[split].images)
    return Listing(classes, tuple(range(1, len(classes) + 1)), parts, findings)


def _folders(source: Path) -> dict[str, Folders]:
    """Return where each split lies; without lists or folders for splits, all is "train"."""
    inside = {path.name.lower(): path for path in sorted(source.iterdir()) if path.is_dir()}
    if "annotations" in inside:
        images = next((inside[name] for name in IMAGE_FOLDERS if name in inside), source)
        lists = {path.stem: path for path in sorted(source.glob("ImageSets/Main/*.txt"))}
        chosen = {split: lists[split] for split in ("train", "val", "test") if split in lists}
        if "train" not in chosen and "trainval" in lists:
            chosen = {"train": lists["trainval"], **({"test": lists["test"]} if "test" in lists else {})}
        if not chosen:
            return {"train": Folders(inside["annotations"], images)}
        return {
            split: Folders(inside["annotations"], images, _stems(path, inside["annotations"]))
            for split, path in chosen.items()
        }
    splits: dict[str, Folders] = {}
    for name, path in inside.items():
        split = canonical_split(name)
        if split is None or not any(path.glob("*.xml")):
            continue
        if split in splits:
            raise DataError(f"{source}: both {splits[split].images} and {path} mean the split {split!r}. Merge them.")
        splits[split] = Folders(path, path)
    return splits or {"train": Folders(source, source)}


def _stems(path: Path, annotations: Path) -> tuple[str, ...]:
    """Return the names in a list of VOC; a flag behind a name, as in the lists of one class, is left out."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Save it as UTF-8 text with one name a line.") from error
    stems: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        stem = line.removesuffix(".xml")
        if not (annotations / f"{stem}.xml").is_file():
            first, _, flag = stem.rpartition(" ")
            stem = first.strip() if flag in ("1", "0", "-1") else stem
        if stem in stems:
            raise DataError(f"{path}, line {number}: repeats {stem!r} of line {stems[stem]}. Remove one of them.")
        if stem:
            stems[stem] = number
    return tuple(stems)


def _count_unlisted(places: Mapping[str, Folders], findings: Findings) -> None:
    listed = {stem for place in places.values() for stem in place.stems or ()}
    for folder in {place.annotations for place in places.values() if place.stems is not None}:
        for path in sorted(folder.glob("*.xml")):
            if path.stem not in listed:
                findings.add(NOT_LISTED, str(path))


def _trees(place: Folders) -> list[tuple[Path, ElementTree.Element]]:
    """Parse the XML files of a part; those that a list names and that are missing are left to `_part`."""
    if place.stems is None:
        files = sorted(place.annotations.glob("*.xml"))
    else:
        files = [file for stem in place.stems if (file := place.annotations / f"{stem}.xml").is_file()]
    return [(file, _parsed(file)) for file in files]


def _parsed(path: Path) -> ElementTree.Element:
    try:
        data = path.read_bytes()
        # Entities could expand to gigabytes or name other files; VOC has none. Without nulls, UTF-16 is as ASCII.
        if b"<!DOCTYPE" in data.replace(b"\0", b""):
            raise DataError(f"{path}: has a document type (<!DOCTYPE), which VOC's files have not. Remove it.")
        root = ElementTree.fromstring(data)  # noqa: S314 - see above
    except ElementTree.ParseError as error:
        line, column = error.position
        raise DataError(f"{path}, line {line}, column {column + 1}: is not valid XML ({error}). Mend it.") from error
    except (OSError, ValueError, LookupError) as error:  # an encoding that does not exist
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read ({error}). Check the file and its permissions.") from error
    if root.tag != "annotation":
        raise DataError(f"{path}: its root is <{root.tag}>, not VOC's <annotation>. Remove it or convert it.")
    return root


def _part(
    place: Folders,
    trees: Sequence[tuple[Path, ElementTree.Element]],
    label_of: dict[str, int],
    first_id: int,
    findings: Findings,
) -> Part:
    found = images_below(place.images)
    by_stem: dict[str, list[Path]] = {}
    for image in found:
        by_stem.setdefault(image.stem, []).append(image)
    by_name = {image.name: image for image in found}
    images: list[ListedImage] = []
    missing: list[Path] = []
    used: set[Path] = set()
    table = AnnotationTable("object")
    for file, tree in trees:
        path = _image_of(file, (tree.findtext("filename") or "").strip(), by_stem, by_name)
        if path is None:
            missing.append(file)
            findings.add(NO_FILE, str(file))
            continue
        used.add(path)
        try:
            height, width = _size(tree) or upright_size(path)
        except ImageError as error:
            missing.append(file)
            findings.add(NO_HEADER, f"{file}: {error}")
            continue
        for number, item in enumerate(tree.iterfind("object"), start=1):
            label = label_of[_name(file, number, item)]
            difficult = (item.findtext("difficult") or "").strip() == "1"
            table.append(file, number, len(images), _box(item), label, crowd=difficult, outline=None)
        images.append(ListedImage(path, first_id + len(images), height, width))
    require_most_images(place.annotations, missing, len(trees), f"Images are looked for in {place.images}.")
    stems = {file.stem for file, _ in trees}
    for path in _without_xml(place, found, stems):
        if path not in used:
            findings.add(NO_XML, str(path))
    return Part(images, table.finish())


def _without_xml(place: Folders, found: Sequence[Path], stems: set[str]) -> Iterator[Path]:
    """Yield the images that should have an annotation file and have none; where a list names them, only those."""
    if place.stems is None:
        yield from (path for path in found if path.stem not in stems)
        return
    by_stem = {path.stem: path for path in found}
    yield from (by_stem.get(stem, place.images / stem) for stem in place.stems if stem not in stems)


def _image_of(file: Path, name: str, by_stem: dict[str, list[Path]], by_name: dict[str, Path]) -> Path | None:
    """Return the image of an XML file: that of its own name, for what stands inside is often out of date."""
    same = by_stem.get(file.stem, [])
    if len(same) == 1:
        return same[0]
    # Of a.jpg and a.png, the one that the file names.
    name = name.replace("\\", "/").rpartition("/")[2]
    return next((path for path in same if path.name == name), None) or (same[0] if same else by_name.get(name))


def _size(tree: ElementTree.Element) -> tuple[int, int] | None:
    """Return height and width, or None where they are missing or 0, as some tools write them."""
    height, width = (_number(tree.findtext(f"size/{side}")) for side in ("height", "width"))
    return (int(height), int(width)) if height >= 1 and width >= 1 else None


def _name(file: Path, number: int, item: ElementTree.Element) -> str:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise DataError(f"{file}, object {number}: has no <name>. Name its class.")
    return name


def _box(item: ElementTree.Element) -> tuple[float, float, float, float]:
    left, top, right, bottom = (_number(item.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
    return left - 1, top - 1, right, bottom


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
