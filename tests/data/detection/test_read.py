from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fullfield.data.detection.objects import DetectionData
from fullfield.data.detection.read import is_detection_data, read_detection_data
from fullfield.errors import ConfigError, DataError
from tests.data.detection.annotation_files import (
    Box,
    coco_content,
    voc_xml,
    write_coco,
    write_image,
    write_text,
    yolo_lines,
)


def blood_cells(shared_data: Path, root: Path) -> tuple[Path, Path, Path]:
    """Write twelve images of each split of the blood cells in all three forms."""
    classes = ["RBC", "WBC", "Platelets"]
    coco, voc, yolo = root / "coco", root / "voc", root / "yolo"
    lines = "".join(f"{split}: images/{split}\n" for split in ("train", "val", "test"))
    write_text(yolo / "data.yaml", f"names: {classes}\n{lines}".replace("'", ""))
    for split in ("train", "val", "test"):
        content = json.loads((shared_data / "bccd_coco" / f"instances_{split}.json").read_text())
        content["images"] = content["images"][:12]
        names = {category["id"]: category["name"] for category in content["categories"]}
        for image in content["images"]:
            boxes: list[Box] = []
            for annotation in content["annotations"]:
                if annotation["image_id"] == image["id"]:
                    x, y, w, h = (int(value) for value in annotation["bbox"])
                    boxes.append((names[annotation["category_id"]], x, y, x + w, y + h))
            name, size = Path(image["file_name"]), (image["width"], image["height"])
            for folder in (coco / "images", voc / "JPEGImages", yolo / "images" / split):
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(shared_data / "bccd_coco" / "images" / name, folder)
            write_text(voc / "Annotations" / f"{name.stem}.xml", voc_xml(boxes, size=size))
            write_text(yolo / "labels" / split / f"{name.stem}.txt", yolo_lines(boxes, classes, size))
        stems = "".join(f"{Path(image['file_name']).stem}\n" for image in content["images"])
        write_text(voc / "ImageSets" / "Main" / f"{split}.txt", stems)
        write_coco(coco / f"instances_{split}.json", content)
    return coco, voc, yolo


def test_the_three_forms_of_the_same_blood_cells_give_the_same_objects(shared_data: Path, tmp_path: Path) -> None:
    coco, voc, yolo = (read_detection_data(root) for root in blood_cells(shared_data, tmp_path))
    assert coco.splits.keys() == voc.splits.keys() == yolo.splits.keys()
    for split in coco.splits:
        expected = {sample.path.name: sample for sample in coco.splits[split]}
        assert len(expected) == 12
        assert sum(len(sample.objects) for sample in expected.values()) > 80
        for other in (voc, yolo):
            assert {sample.path.name for sample in other.splits[split]} == set(expected)
            for sample in other.splits[split]:
                same = expected[sample.path.name]
                assert (sample.height, sample.width) == (same.height, same.width)
                np.testing.assert_allclose(sample.objects.boxes, same.objects.boxes, atol=1e-3)
                np.testing.assert_allclose(sample.objects.areas, same.objects.areas, rtol=1e-4)
                named = [other.classes[label] for label in sample.objects.labels]
                assert named == [coco.classes[label] for label in same.objects.labels]
                assert sample.objects.masks is same.objects.masks is None
    ids = [sample.image_id for part in yolo.splits.values() for sample in part]
    assert len(set(ids)) == len(ids)


def one_file(root: Path, count: int = 20) -> Path:
    content = coco_content([{}] * count, [{"image_id": i} for i in range(1, count + 1)])
    return write_coco(root / "list.json", content, images=root)


def held_out(data: DetectionData) -> list[int]:
    return [sample.image_id for sample in data.splits["val"]]


def test_the_validation_part_depends_on_the_seed_and_not_on_the_order_in_the_file(tmp_path: Path) -> None:
    path = one_file(tmp_path)
    first = read_detection_data(path, seed=1)
    assert len(held_out(first)) == 3
    content = json.loads(path.read_text())
    content["images"].reverse()
    path.write_text(json.dumps(content))
    assert held_out(read_detection_data(path, seed=1)) == held_out(first)
    assert held_out(read_detection_data(path, seed=2)) != held_out(first)
    assert not set(held_out(first)) & {sample.image_id for sample in first.splits["train"]}


@pytest.mark.parametrize("share", [0, 1, -0.1, float("nan")])
def test_an_impossible_share_is_refused(tmp_path: Path, share: float) -> None:
    with pytest.raises(ConfigError, match="held-out share"):
        read_detection_data(one_file(tmp_path), val_share=share)


def test_a_single_image_cannot_be_divided(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the only training image"):
        read_detection_data(one_file(tmp_path, 1))


def test_detection_data_are_told_from_other_data(tmp_path: Path) -> None:
    assert is_detection_data(one_file(tmp_path / "coco"))
    assert is_detection_data(tmp_path / "coco")
    write_text(tmp_path / "voc" / "Annotations" / "a.xml", voc_xml([]))
    assert is_detection_data(tmp_path / "voc")
    write_text(tmp_path / "yolo" / "data.yaml", "names: [cat]\ntrain: images\n")
    assert is_detection_data(tmp_path / "yolo")
    assert is_detection_data(tmp_path / "yolo" / "data.yaml")
    write_image(tmp_path / "classes" / "cat" / "1.png")
    write_text(tmp_path / "classes" / "settings.yaml", "names: [cat]\n")
    write_text(tmp_path / "classes" / "classes.json", '{"names": ["cat"]}')
    write_text(tmp_path / "classes" / "page.xml", "<html/>")
    write_text(tmp_path / "list.csv", "path,label\n")
    for other in ("classes", "list.csv", "gone", "x" * 5000, ""):
        assert not is_detection_data(tmp_path / other if other else "")


def test_other_data_are_refused_with_the_forms_that_can_be_read(tmp_path: Path) -> None:
    write_image(tmp_path / "cat" / "1.png")
    with pytest.raises(DataError, match=r"no detection annotations.*COCO.*Pascal VOC.*YOLO"):
        read_detection_data(tmp_path)
    one_file(tmp_path / "cells")
    with pytest.raises(DataError, match=r"does not exist; did you mean 'cells'\?"):
        read_detection_data(tmp_path / "cels")
    for impossible in ("x" * 5000, "", "a\0b"):
        with pytest.raises(DataError):
            read_detection_data(impossible)


def test_the_garbage_collector_runs_again_after_a_failure(tmp_path: Path) -> None:
    write_text(tmp_path / "list.json", '{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(DataError):
        read_detection_data(tmp_path / "list.json")
    assert gc.isenabled()
