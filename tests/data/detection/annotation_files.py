"""Small detection data sets in each of the three forms, written on the spot."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

Box = tuple[str, float, float, float, float]
"""Class, left, top, right, bottom in pixels, edges at whole numbers."""

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 90, "name": "unicorn"}]


def write_image(path: Path, size: tuple[int, int] = (40, 30), **save: Any) -> Path:
    """Write a picture of (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "teal").save(path, **save)
    return path


def coco_content(
    images: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    categories: Sequence[Mapping[str, Any]] = CATEGORIES,
) -> dict[str, Any]:
    """Return a COCO file's content; what an annotation or image leaves out is filled in, in the order given."""
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 40, "height": 30, **image} for i, image in enumerate(images, 1)
        ],
        "annotations": [
            {"id": 100 + i, "image_id": 1, "category_id": 3, "bbox": [1, 2, 10, 20], "iscrowd": 0, **annotation}
            for i, annotation in enumerate(annotations)
        ],
        "categories": list(categories),
    }


def write_coco(path: Path, content: Any, *, images: Path | None = None) -> Path:
    """Write a COCO file, and its images into the folder `images` where one is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    for image in content["images"] if images is not None else ():
        write_image(images / image["file_name"], (image.get("width") or 40, image.get("height") or 30))
    return path


def voc_xml(
    boxes: Iterable[Box], *, size: tuple[int, int] | None = (40, 30), extra: str = "", filename: str = ""
) -> str:
    """Return an annotation of VOC: pixels count from 1 and the last is inside."""
    objects = "".join(
        f"<object><name>{name}</name>{extra}<bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin>"
        f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>\n"
        for name, left, top, right, bottom in boxes
    )
    header = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    return f"<annotation><filename>{filename}</filename>{header}\n{objects}</annotation>\n"


def write_text(path: Path, text: str) -> Path:
    """Write a text file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def yolo_lines(boxes: Iterable[Box], classes: Sequence[str], size: tuple[int, int]) -> str:
    """Return YOLO's lines: class, centre and size as shares of the (width, height) of the image."""
    width, height = size
    return "".join(
        f"{classes.index(name)} {(left + right) / 2 / width:.8f} {(top + bottom) / 2 / height:.8f} "
        f"{(right - left) / width:.8f} {(bottom - top) / height:.8f}\n"
        for name, left, top, right, bottom in boxes
    )
