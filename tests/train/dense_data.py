"""Small pictures with coloured rectangles, in each form of annotation, and options of a run of a second on them.

A red and a green class, three classes with the background in label maps. What `rectangles` draws depends on its seed
and number alone.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import fullfield
from tests.data.detection.annotation_files import coco_content, voc_xml, write_coco, write_text, yolo_lines

NAMES = ("red", "green")
SIDE = 64
CATEGORIES = [{"id": 4, "name": "red"}, {"id": 9, "name": "green"}]
Corners = tuple[int, int, int, int]

NET: dict[str, Any] = {"model": "racnn_pico", "model_args": ("dims=[8,16,24,32]", "depths=[1,1,1,1]")}
COMMON: dict[str, Any] = NET | {
    "image_size": SIDE,
    "batch_size": 4,
    "epochs": 2,
    "lr": 2e-3,
    "ema": 0.5,
    "workers": 0,
    "device": "cpu",
    "logger": ("none",),
    "scale_jitter": "none",
}
REGIONS = ("fpn_channels=16", "box_features=16", "train_proposals=40", "proposals=20", "sampled_regions=32")
HEADS: dict[str, dict[str, Any]] = {
    "fcos": COMMON | {"head": "fcos", "head_args": ("fpn_channels=16", "convs=1")},
    "mask_rcnn": COMMON | {"head": "mask_rcnn", "head_args": (*REGIONS, "mask_features=16")},
    "faster_rcnn": COMMON | {"head": "faster_rcnn", "head_args": REGIONS},
    "retinanet": COMMON | {"head": "retinanet", "head_args": ("fpn_channels=16", "convs=1", "score_threshold=0.0")},
    "upernet": COMMON | {"head": "upernet", "head_args": ("channels=16", "auxiliary_channels=8")},
}
"""Options of `fullfield.train` with which a run takes about a second."""


def rectangles(number: int, *, size: tuple[int, int] = (SIDE, SIDE)) -> tuple[NDArray[np.uint8], list[Corners]]:
    """Return pixels (H, W, 3) with a red and a green rectangle on noise, and their (left, top, right, bottom)."""
    rng = np.random.default_rng(number)
    width, height = size
    pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
    boxes = []
    for channel in range(2):
        w, h = (int(n) for n in rng.integers(14, 26, 2))
        left = int(rng.integers(0, width // 2 - w)) + channel * width // 2 if w < width // 2 else 0
        top = int(rng.integers(0, height - h))
        pixels[top : top + h, left : left + w] = 0
        pixels[top : top + h, left : left + w, channel] = 230
        boxes.append((left, top, left + w, top + h))
    return pixels, boxes


def write_picture(path: Path, pixels: NDArray[np.uint8]) -> Path:
    """Write pixels without loss, whatever the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_boxes(
    root: Path, *, train: int = 8, val: int = 3, empty: tuple[int, ...] = (), size: tuple[int, int] = (SIDE, SIDE)
) -> Path:
    """Write COCO annotations with outlines, and pictures; pictures of the numbers `empty` have no objects."""
    for split, numbers in (("train", range(train)), ("val", range(100, 100 + val))):
        images, annotations = [], []
        for image_id, number in enumerate(numbers, 1):
            pixels, boxes = rectangles(number, size=size)
            write_picture(root / "images" / f"{number:03}.png", pixels)
            images.append({"id": image_id, "file_name": f"{number:03}.png", "width": size[0], "height": size[1]})
            for label, (left, top, right, bottom) in enumerate(boxes if number not in empty else ()):
                annotations.append(
                    {
                        "image_id": image_id,
                        "category_id": CATEGORIES[label]["id"],
                        "bbox": [left, top, right - left, bottom - top],
                        "area": (right - left) * (bottom - top),
                        "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                    }
                )
        write_coco(root / "annotations" / f"instances_{split}.json", coco_content(images, annotations, CATEGORIES))
    return root


def write_voc(root: Path, *, count: int = 8) -> Path:
    """Write Pascal VOC annotations, side by side with the pictures."""
    for number in range(count):
        pixels, boxes = rectangles(number)
        write_picture(root / "JPEGImages" / f"{number:03}.png", pixels)
        named = [(name, *box) for name, box in zip(NAMES, boxes, strict=True)]
        write_text(
            root / "Annotations" / f"{number:03}.xml",
            voc_xml(named, size=(SIDE, SIDE), filename=f"{number:03}.png"),
        )
    return root


def write_yolo(root: Path, *, count: int = 8) -> Path:
    """Write a data.yaml with the pictures of train and val."""
    for split, numbers in (("train", range(count)), ("val", range(100, 103))):
        for number in numbers:
            pixels, boxes = rectangles(number)
            write_picture(root / "images" / split / f"{number:03}.png", pixels)
            named = [(name, *box) for name, box in zip(NAMES, boxes, strict=True)]
            write_text(root / "labels" / split / f"{number:03}.txt", yolo_lines(named, NAMES, (SIDE, SIDE)))
    write_text(root / "data.yaml", "path: .\ntrain: images/train\nval: images/val\nnames: [red, green]\n")
    return root


def label_map(boxes: list[Corners], size: tuple[int, int] = (SIDE, SIDE)) -> NDArray[np.uint8]:
    """Return labels (H, W): 0 is the background, 1 red, 2 green."""
    labels = np.zeros((size[1], size[0]), np.uint8)
    for label, (left, top, right, bottom) in enumerate(boxes, 1):
        labels[top:bottom, left:right] = label
    return labels


def write_maps(root: Path, *, train: int = 8, val: int = 3, size: tuple[int, int] = (SIDE, SIDE)) -> Path:
    """Write pictures and label maps, split in train and val."""
    for split, numbers in (("train", range(train)), ("val", range(100, 100 + val))):
        for number in numbers:
            pixels, boxes = rectangles(number, size=size)
            write_picture(root / split / "images" / f"{number:03}.png", pixels)
            write_picture(root / split / "masks" / f"{number:03}.png", label_map(boxes, size))
    return root


def columns(run: Path) -> list[str]:
    """Return the header of a run's metrics.csv."""
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file))


@pytest.fixture(scope="session")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO annotations with outlines: eight pictures to train on and three for validation."""
    return write_boxes(tmp_path_factory.mktemp("data") / "boxes")


@pytest.fixture(scope="session")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Label maps, as many."""
    return write_maps(tmp_path_factory.mktemp("data") / "maps")


@pytest.fixture(scope="session")
def detector_run(boxes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of fcos."""
    return fullfield.train(boxes, out=tmp_path_factory.mktemp("runs") / "fcos", **HEADS["fcos"]).run


@pytest.fixture(scope="session")
def segmenter_run(maps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of upernet."""
    return fullfield.train(maps, out=tmp_path_factory.mktemp("runs") / "upernet", **HEADS["upernet"]).run
