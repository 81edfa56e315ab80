"""The blood-cell annotations (COCO) written again as Pascal VOC and as YOLO, and a part of the nuclei."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

__all__ = ["as_voc", "as_yolo", "few_nuclei"]

SPLITS = ("train", "val", "test")


def _read(source: Path, split: str) -> tuple[dict[int, str], list[tuple[dict[str, Any], list[dict[str, Any]]]]]:
    document = json.loads((source / f"instances_{split}.json").read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in document["categories"]}
    boxes: dict[int, list[dict[str, Any]]] = {}
    for annotation in document["annotations"]:
        boxes.setdefault(annotation["image_id"], []).append(annotation)
    return names, [(image, boxes.get(image["id"], [])) for image in document["images"]]


def as_voc(source: Path, folder: Path) -> Path:
    """Write Annotations, JPEGImages (a link to the source's images) and ImageSets/Main; return `folder`."""
    for inner in ("Annotations", "ImageSets/Main"):
        (folder / inner).mkdir(parents=True, exist_ok=True)
    link = folder / "JPEGImages"
    if not link.exists():
        link.symlink_to((source / "images").resolve())
    for split in SPLITS:
        names, images = _read(source, split)
        stems = []
        for image, objects in images:
            file = Path(image["file_name"])
            stems.append(file.stem)
            root = ElementTree.Element("annotation")
            ElementTree.SubElement(root, "filename").text = file.name
            size = ElementTree.SubElement(root, "size")
            for key in ("width", "height"):
                ElementTree.SubElement(size, key).text = str(image[key])
            for annotation in objects:
                left, top, width, height = annotation["bbox"]
                thing = ElementTree.SubElement(root, "object")
                ElementTree.SubElement(thing, "name").text = names[annotation["category_id"]]
                box = ElementTree.SubElement(thing, "bndbox")  # VOC counts pixels from 1, both ends in the box
                edges = {"xmin": left + 1, "ymin": top + 1, "xmax": left + width, "ymax": top + height}
                for key, value in edges.items():
                    ElementTree.SubElement(box, key).text = f"{value:g}"
            ElementTree.ElementTree(root).write(folder / "Annotations" / f"{file.stem}.xml")
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n", encoding="utf-8")
    return folder


def as_yolo(source: Path, folder: Path) -> Path:
    """Write data.yaml, and images (links) with labels of each split; return `folder`."""
    names: dict[int, str] = {}
    for split in SPLITS:
        names, images = _read(source, split)
        numbers = {category: number for number, category in enumerate(sorted(names))}
        for inner in ("images", "labels"):
            (folder / inner / split).mkdir(parents=True, exist_ok=True)
        for image, objects in images:
            file = Path(image["file_name"])
            link = folder / "images" / split / file.name
            if not link.exists():
                link.symlink_to((source / "images" / file.name).resolve())
            wide, high = image["width"], image["height"]
            lines = []
            for annotation in objects:
                left, top, width, height = annotation["bbox"]
                values = ((left + width / 2) / wide, (top + height / 2) / high, width / wide, height / high)
                number = numbers[annotation["category_id"]]
                lines.append(" ".join([str(number), *(f"{value:.8f}" for value in values)]))
            (folder / "labels" / split / f"{file.stem}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    listed = "".join(f"  {number}: {names[category]}\n" for number, category in enumerate(sorted(names)))
    text = "train: images/train\nval: images/val\ntest: images/test\nnames:\n" + listed
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    return folder


def few_nuclei(source: Path, folder: Path, train: int = 120, val: int = 40) -> Path:
    """Write the COCO annotations of the first images of each split, with a link to the images; return `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "images"
    if not link.exists():
        link.symlink_to((source / "images").resolve())
    for split, count in (("train", train), ("val", val)):
        document = json.loads((source / f"instances_{split}.json").read_text(encoding="utf-8"))
        document["images"] = sorted(document["images"], key=lambda image: image["id"])[:count]
        kept = {image["id"] for image in document["images"]}
        document["annotations"] = [one for one in document["annotations"] if one["image_id"] in kept]
        (folder / f"instances_{split}.json").write_text(json.dumps(document), encoding="utf-8")
    return folder
