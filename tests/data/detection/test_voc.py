from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fullfield.data.detection.objects import DetectionSample
from fullfield.data.detection.read import read_detection_data
from fullfield.errors import DataError
from tests.data.detection.annotation_files import Box, voc_xml, write_image, write_text

CAT: Box = ("cat", 1, 2, 11, 22)
DOG: Box = ("dog", 0, 0, 40, 30)


def write_voc(root: Path, stems: str, *, annotations: str = "Annotations", images: str = "JPEGImages") -> Path:
    """Write an image and an annotation of a cat for each letter."""
    for stem in stems:
        write_image(root / images / f"{stem}.jpg")
        write_text(root / annotations / f"{stem}.xml", voc_xml([CAT]))
    return root


def by_stem(root: Path) -> dict[str, DetectionSample]:
    return {s.path.stem: s for part in read_detection_data(root).splits.values() for s in part}


def splits(root: Path) -> dict[str, str]:
    data = read_detection_data(root)
    return {split: "".join(sample.path.stem for sample in part) for split, part in data.splits.items()}


def test_a_box_over_the_whole_image_counts_from_1_and_ends_inside(tmp_path: Path) -> None:
    write_voc(tmp_path, "ab")
    text = (
        "<annotation><size><width>40</width><height>30</height></size><object><name> dog </name><bndbox>"
        "<xmax>40</xmax><ymax>30.0</ymax><xmin>1</xmin><ymin>1</ymin></bndbox></object></annotation>"
    )
    write_text(tmp_path / "Annotations" / "a.xml", text)
    data = read_detection_data(tmp_path)
    sample = by_stem(tmp_path)["a"]
    assert sample.objects.boxes.tolist() == [[0, 0, 40, 30]]
    assert sample.objects.areas.tolist() == [1200]
    assert sample.objects.boxes.dtype == np.float32
    assert (data.classes, data.category_ids) == (("cat", "dog"), (1, 2))
    assert not data.has_masks


def test_difficult_objects_are_crowds_and_images_without_objects_stay(tmp_path: Path) -> None:
    write_voc(tmp_path, "abc")
    write_text(tmp_path / "Annotations" / "a.xml", voc_xml([CAT], extra="<difficult>1</difficult>"))
    write_text(tmp_path / "Annotations" / "b.xml", voc_xml([]))
    samples = by_stem(tmp_path)
    assert samples["a"].objects.crowd.tolist() == [True]
    assert samples["c"].objects.crowd.tolist() == [False]
    assert len(samples["b"].objects) == 0


def test_lists_divide_the_images_and_what_they_lack_is_counted(tmp_path: Path) -> None:
    write_voc(tmp_path, "abcdef")
    lists = tmp_path / "ImageSets" / "Main"
    for name, text in (("train", "a\nb \n"), ("val", "c\n"), ("trainval", "a\nb\nc\n"), ("test", "d  1\n\ne -1\n")):
        write_text(lists / f"{name}.txt", text)
    assert splits(tmp_path) == {"train": "ab", "val": "c", "test": "de"}
    (note,) = read_detection_data(tmp_path).notes
    assert "no list of a split has them: 1" in note
    assert "f.xml" in note
    for name in ("train", "val"):
        (lists / f"{name}.txt").unlink()
    assert sorted(splits(tmp_path)["train"] + splits(tmp_path)["val"]) == ["a", "b", "c"]


def test_a_repeated_line_of_a_list_is_refused(tmp_path: Path) -> None:
    write_text(write_voc(tmp_path, "abc") / "ImageSets" / "Main" / "train.txt", "a\nb\na\n")
    with pytest.raises(DataError, match=r"train.txt, line 3: repeats 'a' of line 1"):
        read_detection_data(tmp_path)


def test_images_and_xml_may_lie_side_by_side(tmp_path: Path) -> None:
    write_voc(tmp_path / "one", "abc", annotations=".", images=".")
    assert sorted("".join(splits(tmp_path / "one").values())) == ["a", "b", "c"]
    write_voc(tmp_path / "two", "ab", annotations="train", images="train")
    write_voc(tmp_path / "two", "c", annotations="valid", images="valid")
    assert splits(tmp_path / "two") == {"train": "ab", "val": "c"}
    assert splits(write_voc(tmp_path / "three", "abcd", annotations="annotations", images="images"))["val"] in "abcd"


def test_an_image_without_annotation_and_the_reverse_are_skipped_and_counted(tmp_path: Path) -> None:
    write_voc(tmp_path, "abcd")
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    (tmp_path / "Annotations" / "b.xml").unlink()
    data = read_detection_data(tmp_path)
    assert sorted(by_stem(tmp_path)) == ["c", "d"]
    assert any("their image is missing: 1" in note and "a.xml" in note for note in data.notes)
    assert any("no annotation file" in note and "b.jpg" in note for note in data.notes)
    (tmp_path / "JPEGImages" / "c.jpg").unlink()
    with pytest.raises(DataError, match="2 of 3 images are missing"):
        read_detection_data(tmp_path)


def test_an_image_renamed_after_annotation_is_found_by_the_name_of_the_xml(tmp_path: Path) -> None:
    write_voc(tmp_path, "ab")
    write_text(tmp_path / "Annotations" / "a.xml", voc_xml([CAT], filename="IMG_0001.JPG"))
    write_text(tmp_path / "Annotations" / "x.xml", voc_xml([DOG], filename="c:\\pictures\\y.png"))
    write_image(tmp_path / "JPEGImages" / "y.png")
    assert sorted(by_stem(tmp_path)) == ["a", "b", "y"]


@pytest.mark.parametrize("size", [None, (0, 0)])
def test_a_missing_size_is_read_from_the_header(tmp_path: Path, size: tuple[int, int] | None) -> None:
    write_voc(tmp_path, "ab")
    write_text(tmp_path / "Annotations" / "a.xml", voc_xml([DOG], size=size))
    sample = by_stem(tmp_path)["a"]
    assert (sample.height, sample.width) == (30, 40)


def test_an_image_whose_size_is_unknown_is_skipped_and_counted(tmp_path: Path) -> None:
    write_voc(tmp_path, "abc")
    write_text(tmp_path / "Annotations" / "a.xml", voc_xml([DOG], size=None))
    (tmp_path / "JPEGImages" / "a.jpg").write_bytes(b"no picture")
    assert sorted(by_stem(tmp_path)) == ["b", "c"]
    assert any("readable header" in note and "a.xml" in note for note in read_detection_data(tmp_path).notes)


def test_bad_boxes_are_counted_with_file_and_object(tmp_path: Path) -> None:
    write_voc(tmp_path, "abc")
    boxes: list[Box] = [CAT, ("cat", 50, 0, 60, 9), ("cat", 5, 5, 5, 9), ("cat", 5, 5, 99, 9), CAT, CAT]
    text = voc_xml(boxes).replace("</annotation>", "<object><name>cat</name></object></annotation>")
    write_text(tmp_path / "Annotations" / "a.xml", text)
    objects = by_stem(tmp_path)["a"].objects
    assert objects.ids.tolist() == [1, 4, 5, 6]
    assert objects.boxes[1].tolist() == [5, 5, 40, 9]
    notes = " ".join(read_detection_data(tmp_path).notes)
    for what, number in (("outside of the image", 2), ("no width or height", 3), ("clipped", 4), ("not four", 7)):
        assert what in notes
        assert f"a.xml, object {number})" in notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>\n<object></annotation>", r"a.xml, line 2, column \d+: is not valid XML"),
        ("", "a.xml, line 1"),
        ("<annotation><object/></annotation>", "a.xml, object 1: has no <name>"),
        ("<html/>", "its root is <html>"),
        ('<!DOCTYPE a [<!ENTITY b "lol"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>', "document type"),
        ('<!DOCTYPE a SYSTEM "file:///etc/hostname"><annotation/>', "document type"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "a.xml"),
    ],
)
def test_broken_and_dangerous_xml_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    write_text(write_voc(tmp_path, "abc") / "Annotations" / "a.xml", text)
    with pytest.raises(DataError, match=message):
        read_detection_data(tmp_path)


def test_a_document_type_in_utf_16_is_refused_too(tmp_path: Path) -> None:
    text = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY b "lol">]><annotation>&b;</annotation>'
    (write_voc(tmp_path, "abc") / "Annotations" / "a.xml").write_bytes(text.encode("utf-16"))
    with pytest.raises(DataError, match="document type"):
        read_detection_data(tmp_path)
