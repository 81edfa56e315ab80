from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fullfield.data.detection.objects import DetectionSample
from fullfield.data.detection.read import read_detection_data
from fullfield.errors import DataError
from tests.data.detection.annotation_files import write_image, write_text

WHOLE = "0 0.5 0.5 1 1\n"
YAML = "names: [cat, dog]\ntrain: images/train\nval: images/val\n"


def write_yolo(root: Path, text: str = YAML, *, stems: str = "abc", val: str = "d") -> Path:
    """Write images of 40 × 30, each with a cat all over it."""
    write_text(root / "data.yaml", text)
    for split, names in (("train", stems), ("val", val)):
        for stem in names:
            write_image(root / "images" / split / f"{stem}.png")
            write_text(root / "labels" / split / f"{stem}.txt", WHOLE)
    return root


def by_stem(root: Path) -> dict[str, DetectionSample]:
    return {s.path.stem: s for part in read_detection_data(root).splits.values() for s in part}


def test_shares_become_pixels(tmp_path: Path) -> None:
    write_text(write_yolo(tmp_path) / "labels" / "train" / "a.txt", "1 0.25 0.5 0.5 0.2\n\n0.0 .5 .5 1 1")
    data = read_detection_data(tmp_path)
    objects = by_stem(tmp_path)["a"].objects
    np.testing.assert_allclose(objects.boxes, [[0, 12, 20, 18], [0, 0, 40, 30]], atol=1e-4)
    assert objects.labels.tolist() == [1, 0]
    assert objects.ids.tolist() == [1, 3]
    np.testing.assert_allclose(objects.areas, [120, 1200], rtol=1e-5)
    assert (data.classes, data.category_ids, data.notes, data.has_masks) == (("cat", "dog"), (0, 1), (), False)
    assert {split: len(part) for split, part in data.splits.items()} == {"train": 3, "val": 1}


def test_polygons_become_outlines_with_their_box_and_area(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    for path in tmp_path.glob("labels/*/*.txt"):
        path.write_text("1 0.25 0.2 0.75 0.2 0.75 0.4 0.5 0.8\n")
    assert read_detection_data(tmp_path).has_masks
    objects = by_stem(tmp_path)["a"].objects
    np.testing.assert_allclose(objects.boxes, [[10, 6, 30, 24]], atol=1e-4)
    assert objects.masks is not None
    np.testing.assert_allclose(objects.masks[0][0], [[10, 6], [30, 6], [30, 12], [20, 24]], atol=1e-4)
    assert objects.areas.tolist() == pytest.approx([210])  # counted by hand: 90 + 30 + 90 of the corners cut from 360


@pytest.mark.parametrize(
    "text",
    [
        *("names: {0: cat, 1: dog}\n", "names:\n  0: cat\n  1: dog\n", "names:\n- cat\n- dog\nnc: 2\n"),
        *("path: .\nnames: [cat, dog]\n", "path: nowhere\nnames: [cat, dog]\n"),
    ],
)
def test_spellings_of_the_yaml(tmp_path: Path, text: str) -> None:
    splits = "train: ../images/train\nvalid: [images/val]\ntest:\n"  # a parent too many, as Roboflow writes
    data = read_detection_data(write_yolo(tmp_path, text + splits) / "data.yaml")
    assert data.classes == ("cat", "dog")
    assert [len(part) for part in data.splits.values()] == [3, 1]


def test_class_numbers_may_have_gaps(tmp_path: Path) -> None:
    write_yolo(tmp_path, YAML.replace("[cat, dog]", "{5: dog, 0: cat}"))
    write_text(tmp_path / "labels" / "train" / "a.txt", "5 0.5 0.5 1 1")
    data = read_detection_data(tmp_path)
    assert (data.classes, data.category_ids) == (("cat", "dog"), (0, 5))
    assert by_stem(tmp_path)["a"].objects.labels.tolist() == [1]


def test_lists_of_images_and_labels_beside_them(tmp_path: Path) -> None:
    write_text(tmp_path / "coco8.yaml", "names: [cat]\ntrain: train.txt\n")
    write_text(tmp_path / "train.txt", "./pictures/a.png\n\npictures/b.png\npictures/c.png\n")
    for stem in "ab":
        write_image(tmp_path / "pictures" / f"{stem}.png")
        write_text(tmp_path / "pictures" / f"{stem}.txt", WHOLE)
    data = read_detection_data(tmp_path)
    assert {split: len(part) for split, part in data.splits.items()} == {"train": 1, "val": 1}
    assert any("file is missing: 1" in note and "c.png" in note for note in data.notes)


def test_sizes_are_those_of_the_upright_image(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    tags = Image.Exif()
    tags[0x0112] = 8
    write_image(tmp_path / "images" / "train" / "a.png", (40, 30), exif=tags)
    sample = by_stem(tmp_path)["a"]
    assert (sample.height, sample.width) == (40, 30)
    assert sample.objects.boxes.tolist() == [[0, 0, 30, 40]]


def test_images_without_labels_stay_empty_and_labels_without_image_are_skipped_and_counted(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "labels" / "train" / "a.txt").unlink()
    (tmp_path / "images" / "train" / "b.png").unlink()
    samples, data = by_stem(tmp_path), read_detection_data(tmp_path)
    assert len(samples["a"].objects) == 0
    assert "b" not in samples
    assert any("without a label file" in note and "a.png" in note for note in data.notes)
    assert any("they have no image: 1" in note and "b.txt" in note for note in data.notes)


def test_no_label_file_at_all_says_where_they_were_looked_for(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    for path in tmp_path.glob("labels/*/*.txt"):
        path.unlink()
    with pytest.raises(DataError, match=r"no image of 'train' has a label file.*labels/train/a.txt"):
        read_detection_data(tmp_path)


def test_an_image_with_a_broken_header_is_skipped_and_counted(tmp_path: Path) -> None:
    (write_yolo(tmp_path) / "images" / "train" / "a.png").write_bytes(b"no picture")
    assert sorted(by_stem(tmp_path)) == ["b", "c", "d"]
    assert any("size cannot be read" in note and "a.png" in note for note in read_detection_data(tmp_path).notes)


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("0 2.5 0.5 0.1 0.1", "outside of the image"),
        ("0 0.5 0.5 0 0.1", "no width or height"),
        ("0 nan 0.5 0.1 0.1", "not four finite"),
        ("0 0.1 0.1 0.4 0.1", "clipped"),
        ("0 0.1 0.1", "fewer than 3 points"),
        ("0", "fewer than 3 points"),
        ("0 0.1 0.1 0.5 0.1 0.5", "odd number"),
        ("0 0.1 0.1 0.5 0.1 0.5 inf", "not a number"),
    ],
)
def test_bad_boxes_and_polygons_are_counted_with_file_and_line(tmp_path: Path, line: str, note: str) -> None:
    write_text(write_yolo(tmp_path) / "labels" / "train" / "a.txt", WHOLE + line + "\n" + WHOLE * 2)
    (text,) = read_detection_data(tmp_path).notes
    assert note in text
    assert "a.txt, line 2)" in text
    assert len(by_stem(tmp_path)["a"].objects) == 3 + (note == "clipped")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 1 1", "a.txt, line 2: the class 2 is not listed; known are '0', '1'"),
        ("-1 0.5 0.5 1 1", "the class -1 is not listed"),
        ("0.5 0.5 0.5 1 1", "the class 0.5 is not listed"),
        ("nan 0.5 0.5 1 1", "the class nan is not listed"),
        ("cat 0.5 0.5 1 1", "a.txt, line 2: 'cat 0.5 0.5 1 1' is not a class and its numbers"),
        ("0,0.5,0.5,1,1", "line 2"),
    ],
)
def test_a_broken_line_is_refused_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    write_text(write_yolo(tmp_path) / "labels" / "train" / "a.txt", WHOLE + line + "\n")
    with pytest.raises(DataError, match=message):
        read_detection_data(tmp_path)


def test_pixels_in_place_of_shares_are_refused(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    for path in tmp_path.glob("labels/*/*.txt"):
        path.write_text("0 20 15 10 10\n")
    with pytest.raises(DataError, match=r"3 of 3 objects of 'train' cannot be used.*boxes are those of this format"):
        read_detection_data(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [cat\ntrain: images/train\n", "data.yaml, line 2: is not valid YAML"),
        ("names: cat\ntrain: images/train\n", "must be a list"),
        ("names: {a: cat}\ntrain: images/train\n", "needs a whole number"),
        ("names: [cat]\nnc: 2\ntrain: images/train\n", "'nc' says 2 classes, but 'names' has 1"),
        ("names: [cat]\ntrain:\n", "has no 'train'"),
        ("names: [cat]\ntrain: 7\n", "must be a folder"),
        ("names: [cat]\ntrain: images/trian\n", "'train' is 'images/trian', which does not exist"),
        ("names: [cat]\ntrain: images/train\nval: gone\n", "'val' is 'gone'"),
        ("names: [cat]\ntrain: images/train\nval: images/val\nvalid: images/val\n", "two keys mean the split 'val'"),
    ],
)
def test_a_broken_yaml_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_detection_data(write_yolo(tmp_path, text))


def test_a_missing_test_part_is_only_told(tmp_path: Path) -> None:
    data = read_detection_data(write_yolo(tmp_path, YAML + "test: images/test\n"))
    assert any("folder is missing" in note and "'images/test'" in note for note in data.notes)
