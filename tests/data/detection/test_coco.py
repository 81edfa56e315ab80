from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fullfield.data.detection.objects import DetectionData, DetectionSample, Objects
from fullfield.data.detection.outlines import outline_to_mask
from fullfield.data.detection.read import read_detection_data
from fullfield.errors import DataError
from tests.data.detection.annotation_files import CATEGORIES, coco_content, write_coco, write_image

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools's own
Read = Callable[..., DetectionData]
SQUARE = [2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Write one COCO file of the given images and annotations beside its images, and read it."""

    def write_and_read(
        annotations: list[dict[str, Any]], images: list[dict[str, Any]] | None = None, **change: Any
    ) -> DetectionData:
        # A second annotated image, so that there is one to set aside.
        content = coco_content([{}, {}] if images is None else images, annotations)
        content["annotations"].append({"id": 99, "image_id": 2, "category_id": 7, "bbox": [0, 0, 5, 5], "area": 25})
        if any("segmentation" in annotation for annotation in annotations):
            content["annotations"][-1]["segmentation"] = [SQUARE]
        content.update(change)
        return read_detection_data(write_coco(tmp_path / "list.json", content, images=tmp_path))

    return write_and_read


def by_id(data: DetectionData) -> dict[int, DetectionSample]:
    return {sample.image_id: sample for part in data.splits.values() for sample in part}


def first(data: DetectionData) -> Objects:
    """The objects of image 1, which half of the tests set up."""
    return by_id(data)[1].objects


@pytest.mark.parametrize("name", ["coco_cc", "nuclei_coco", "bccd_coco"])
def test_objects_are_those_that_pycocotools_reads(shared_data: Path, name: str) -> None:
    coco = pytest.importorskip("pycocotools.coco", reason="compares with pycocotools, which is not installed")
    root = shared_data / name
    data = read_detection_data(root)
    for split, samples in data.splits.items():
        (path,) = [*root.glob(f"**/instances_{split}*.json")]
        with contextlib.redirect_stdout(io.StringIO()):
            official = coco.COCO(str(path))
        assert [sample.image_id for sample in samples] == sorted(official.getImgIds())
        assert data.category_ids == tuple(sorted(official.getCatIds()))
        assert data.classes == tuple(category["name"] for category in official.loadCats(data.category_ids))
        for sample in samples[:: 1 + len(samples) // 90]:
            assert sample.path.is_file()
            expected = official.loadAnns(official.getAnnIds([sample.image_id]))
            objects = sample.objects
            assert objects.ids.tolist() == [a["id"] for a in expected]
            assert [data.category_ids[label] for label in objects.labels] == [a["category_id"] for a in expected]
            assert objects.crowd.tolist() == [bool(a["iscrowd"]) for a in expected]
            np.testing.assert_allclose(objects.areas, [a["area"] for a in expected], rtol=1e-6)
            boxes = np.array([a["bbox"] for a in expected]).reshape(-1, 4)
            np.testing.assert_allclose(objects.boxes[:, :2], boxes[:, :2], atol=1e-4)
            np.testing.assert_allclose(objects.boxes[:, 2:], boxes[:, :2] + boxes[:, 2:], atol=1e-4)
            assert (objects.masks is not None) == ("segmentation" in official.dataset["annotations"][0])
            for outline, annotation in list(zip(objects.masks or (), expected, strict=False))[:2]:
                mask = outline_to_mask(outline, sample.height, sample.width)
                np.testing.assert_array_equal(mask, official.annToMask(annotation).astype(np.bool_))
    assert data.has_masks == (name != "bccd_coco")


def test_types_are_those_of_the_contract(read: Read) -> None:
    objects = first(read([{"segmentation": [SQUARE]}]))
    assert objects.boxes.dtype == objects.areas.dtype == np.float32
    assert objects.labels.dtype == objects.ids.dtype == np.int64
    assert objects.crowd.dtype == np.bool_
    assert objects.masks is not None
    ((polygon,),) = objects.masks
    assert (polygon.dtype, polygon.shape) == (np.float32, (4, 2))


def test_gaps_in_the_ids_of_categories_and_classes_without_objects_stay(read: Read) -> None:
    data = read([{"category_id": 3}])
    assert data.classes == ("cat", "dog", "unicorn")
    assert data.category_ids == (3, 7, 90)
    counts = np.add(data.counts("train"), data.counts("val"))
    assert counts.tolist() == [1, 1, 0]


def test_crowds_and_images_without_objects_are_kept(read: Read) -> None:
    runs = {"size": [30, 40], "counts": [10, 20, 1170]}
    data = read([{"iscrowd": 1, "segmentation": runs, "area": None}], [{}, {}, {}])
    assert first(data).crowd.tolist() == [True]
    assert first(data).areas.tolist() == [20]
    assert len(by_id(data)[3].objects) == 0


@pytest.mark.parametrize(
    ("annotation", "area"),
    [
        ({"area": 12.5}, 12.5),
        ({}, 200),
        *(({"area": bad}, 200) for bad in (None, 0, -3, float("nan"), "12", float("inf"))),
        ({"segmentation": [SQUARE]}, 36),
        ({"segmentation": [SQUARE], "area": 35}, 35),
    ],
)
def test_areas_are_the_files_else_the_outlines_else_the_boxes(
    read: Read, annotation: dict[str, Any], area: float
) -> None:
    assert first(read([annotation])).areas.tolist() == [area]


@pytest.mark.parametrize(
    ("box", "kept", "note"),
    [
        ([30, 20, 10, 10], [30, 20, 40, 30], None),
        ([30, 20, 10.05, 10.05], [30, 20, 40, 30], None),  # rounding
        ([30, 20, 20, 10], [30, 20, 40, 30], "clipped"),
        ([-5, -5, 10, 100], [0, 0, 5, 30], "clipped"),
        *(([x, y, 5, 5], None, "outside of the image") for x, y in ((40, 0), (50, 0), (-5, 0), (0, 30), (0, -9))),
        *(([1, 1, w, h], None, "no width or height") for w, h in ((0, 5), (5, 0), (-1, 5), (5, -2))),
        *(([1, bad, 5, 5], None, "not four finite") for bad in (float("nan"), float("inf"), -float("inf"))),
        *((bad, None, "not four finite") for bad in ([1, 2, 3], [1, 2, 3, 4, 5], None, "box", [1, 2, "a", 4], {}, [])),
    ],
    ids=repr,
)
def test_boxes_are_clipped_or_skipped_and_counted_with_file_and_id(
    read: Read, box: Any, kept: list[float] | None, note: str | None
) -> None:
    data = read([{"bbox": box}, {"bbox": [0, 0, 1, 1], "id": 5}])
    assert first(data).boxes.tolist() == [*([kept] if kept else []), [0, 0, 1, 1]]
    notes = [text for text in data.notes if "set aside" not in text]
    if note is None:
        assert notes == []
    else:
        (text,) = notes
        assert note in text
        assert "list.json, annotation 100" in text
        assert ": 1 (first" in text


def test_defects_are_counted_by_kind(read: Read) -> None:
    data = read([{"bbox": [1, 1, 0, 0]}] * 3 + [{"bbox": [-5, 0, 9, 9]}] * 2 + [{}] * 4)
    assert any("no width or height: 3 (first: " in note for note in data.notes)
    assert any("beyond their image: 2 (first: " in note and "annotation 103)" in note for note in data.notes)


def test_an_unknown_class_is_refused_with_the_known_ids(read: Read) -> None:
    with pytest.raises(DataError, match=r"list.json: annotation 100 has the category id 4.*'3', '7', '90'"):
        read([{"category_id": 4}])
    with pytest.raises(DataError, match="category id None"):
        read([{"category_id": None}])


def test_an_annotation_without_its_image_is_skipped_and_counted(read: Read) -> None:
    data = read([{"image_id": 77}, {"image_id": None}, {}])
    assert first(data).ids.tolist() == [102]
    assert any("no listed image has their image_id: 2" in n and "annotation 100, image_id 77" in n for n in data.notes)


def test_an_image_without_its_file_is_skipped_with_its_annotations(tmp_path: Path) -> None:
    content = coco_content([{}, {}, {"id": 31, "file_name": "gone.png"}], [{}, {"image_id": 31}, {"image_id": 2}])
    path = write_coco(tmp_path / "list.json", content, images=tmp_path)
    (tmp_path / "gone.png").unlink()
    data = read_detection_data(path)
    assert set(by_id(data)) == {1, 2}
    (note,) = [note for note in data.notes if "missing" in note]
    assert ": 1 (first" in note
    assert "image 31" in note
    assert "gone.png" in note
    (tmp_path / "1.png").unlink()
    with pytest.raises(DataError, match="2 of 3 images are missing"):
        read_detection_data(path)


def test_no_image_at_all_says_where_they_were_looked_for(tmp_path: Path) -> None:
    path = write_coco(tmp_path / "list.json", coco_content([{}, {}], [{}]))
    with pytest.raises(DataError, match=r"none of its images was found, for instance '1.png'; looked in"):
        read_detection_data(path)


def test_a_doubled_image_id_is_refused_with_both_files(read: Read) -> None:
    with pytest.raises(DataError, match=r"image id 4 is given twice, to 'a.png' and 'b.png'"):
        read([], [{"id": 4, "file_name": "a.png"}, {"id": 4, "file_name": "b.png"}])


def test_the_same_image_id_in_two_splits_is_fine(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_coco(tmp_path / f"instances_{split}.json", coco_content([{}], [{}]), images=tmp_path / split)
    data = read_detection_data(tmp_path)
    assert [part[0].image_id for part in data.splits.values()] == [1, 1]
    assert data.notes == ()


def test_a_file_listed_under_two_ids_or_in_two_splits_is_told(tmp_path: Path) -> None:
    content = coco_content([{"file_name": "a.png"}, {"file_name": "a.png"}], [{}])
    for split in ("train", "val"):
        write_coco(tmp_path / f"instances_{split}.json", content, images=tmp_path)
    notes = " ".join(read_detection_data(tmp_path).notes)
    assert "more than once under different ids" in notes
    assert "in train and val" in notes


@pytest.mark.parametrize("size", [{"width": None}, {"height": 0}, {"width": "wide"}, {"height": float("nan")}])
def test_a_missing_size_is_read_upright_from_the_header(tmp_path: Path, size: dict[str, Any]) -> None:
    content = coco_content([{"file_name": "a.jpg", **size}, {}], [{"bbox": [0, 0, 30, 40]}, {"image_id": 2}])
    path = write_coco(tmp_path / "list.json", content)
    write_image(tmp_path / "2.png")
    exif = write_image(tmp_path / "a.jpg", (40, 30))
    with Image.open(exif) as image:
        tags = image.getexif()
        tags[0x0112] = 6
        image.save(exif, exif=tags)
    sample = by_id(read_detection_data(path))[1]
    assert (sample.height, sample.width) == (40, 30)
    assert sample.objects.boxes.tolist() == [[0, 0, 30, 40]]


def test_an_image_without_size_and_header_is_skipped_and_counted(tmp_path: Path) -> None:
    path = write_coco(tmp_path / "list.json", coco_content([{}, {}, {"width": None}], [{}]), images=tmp_path)
    (tmp_path / "3.png").write_bytes(b"no picture")
    data = read_detection_data(path)
    assert set(by_id(data)) == {1, 2}
    assert any("no readable header: 1" in note and "3.png" in note for note in data.notes)


def outlines(bad: Any) -> list[dict[str, Any]]:
    return [{"segmentation": bad}, *({"segmentation": [SQUARE]} for _ in range(12))]


@pytest.mark.parametrize(
    ("outline", "note"),
    [
        ([SQUARE[:4]], "fewer than 3 points"),
        ([[]], "fewer than 3 points"),
        ([SQUARE[:7]], "odd number of coordinates"),
        ([[*SQUARE, float("nan"), 1]], "not a number"),
        ([[*SQUARE, 1e9, 1]], "not a number"),
        ([["a"] * 6], "not a number"),
        ([7, 8], "not a number"),
        ({"size": [40, 30], "counts": [1200]}, "not that of their image"),
        ({"size": [30, 40], "counts": [1201]}, "damaged"),
        ({"size": [30, 40], "counts": "?!"}, "damaged"),
        ({"counts": [1200]}, "damaged"),
        ({"size": [], "counts": [1200]}, "not that of their image"),
        ("outline", "neither polygons nor RLE"),
    ],
    ids=repr,
)
def test_a_bad_outline_is_counted_and_its_object_skipped(read: Read, outline: Any, note: str) -> None:
    data = read(outlines(outline))
    assert first(data).ids.tolist() == list(range(101, 113))
    assert data.has_masks
    assert any(note in text and "list.json, annotation 100" in text for text in data.notes)
    assert any("no usable outline" in text and ": 1 (first" in text for text in data.notes)


def test_one_bad_polygon_of_several_is_left_out_alone(read: Read) -> None:
    objects = first(read(outlines([SQUARE, SQUARE[:4]])))
    assert objects.masks is not None
    assert len(objects) == 13
    assert len(objects.masks[0]) == 1


def test_objects_without_outline_are_skipped_if_few_and_all_outlines_are_left_out_if_many(read: Read) -> None:
    few = read(outlines([]))
    assert few.has_masks
    assert len(first(few)) == 12
    many = read([{"segmentation": [SQUARE]}, {}, {}])
    assert not many.has_masks
    assert len(first(many)) == 3
    assert any("Outlines left out" in note and ": 2 (first" in note for note in many.notes)


def test_data_most_of_whose_objects_cannot_be_used_are_refused(read: Read) -> None:
    with pytest.raises(DataError, match=r"3 of 5 objects of 'train' cannot be used.*outside of the image: 3"):
        read([{"bbox": [900, 900, 50, 50]}] * 3 + [{}])


def test_data_without_any_object_are_refused(tmp_path: Path) -> None:
    path = write_coco(tmp_path / "list.json", coco_content([{}, {}], []), images=tmp_path)
    with pytest.raises(DataError, match="none of the 2 training images has an object"):
        read_detection_data(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "has no list 'images'"),
        ({"annotations": {}}, "has no list 'annotations'"),
        ({"annotations": [7]}, "has no list 'annotations'"),
        ({"categories": []}, "is empty"),
        ({"categories": [{"id": "3", "name": "cat"}]}, "whole number"),
        ({"categories": [{"id": 3}]}, "a 'name'"),
        ({"categories": [*CATEGORIES, {"id": 3, "name": "lion"}]}, "category id 3 is that of 'cat' and of 'lion'"),
        ({"images": [{"id": "1", "file_name": "1.png"}]}, "'1.png' has the id '1'"),
        ({"images": [{"id": 1}]}, "image with id 1 has no 'file_name'"),
        ({"annotations": [{"image_id": [1]}]}, "image_id is not a number"),
        ({"annotations": [{"image_id": 1, "category_id": {}}]}, "category_id is not a number"),
    ],
)
def test_files_that_are_not_coco_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_coco(tmp_path / "list.json", {**coco_content([{}, {}], [{}]), **change})
    for name in ("1.png", "2.png"):
        write_image(tmp_path / name)
    with pytest.raises(DataError, match=message):
        read_detection_data(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"images": [],\n "categories": [,', "list.json, line 2, column 17: is not valid JSON"),
        (b'{"images": "\xff\xfe", "categories": []}', "not UTF-8"),
        (b'{"images": ' + b"[" * 100_000 + b', "categories"', "nested too deeply"),
    ],
    ids=["syntax", "encoding", "depth"],
)
def test_broken_json_names_the_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "list.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_detection_data(tmp_path / "list.json")


def test_categories_that_differ_between_splits_are_refused(tmp_path: Path) -> None:
    write_coco(tmp_path / "instances_train.json", coco_content([{}], [{}]), images=tmp_path)
    other = coco_content([{}], [{}], [{"id": 3, "name": "lion"}])
    write_coco(tmp_path / "instances_val.json", other)
    with pytest.raises(DataError, match=r"instances_val.json: the category id 3 is 'lion', but .* has 'cat'"):
        read_detection_data(tmp_path)


def test_classes_of_one_name_are_told_apart(read: Read) -> None:
    data = read([], categories=[{"id": 3, "name": "cat"}, {"id": 7, "name": "cat"}])
    assert data.classes == ("cat (3)", "cat (7)")
    assert any("Classes of the same name" in note for note in data.notes)


def test_twenty_thousand_objects_reach_their_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [{"id": int(i), "file_name": "same.png", "width": 640, "height": 480} for i in rng.permutation(2000)]
    boxes = np.concatenate([rng.integers(0, 300, (20_000, 2)), rng.integers(1, 150, (20_000, 2))], axis=1)
    owners = rng.integers(0, 2000, 20_000)
    annotations = [
        {"id": i, "image_id": int(owner), "category_id": 7, "bbox": box.tolist(), "segmentation": [SQUARE]}
        for i, (owner, box) in enumerate(zip(owners, boxes, strict=True))
    ]
    write_image(tmp_path / "same.png")
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))
    samples = by_id(read_detection_data(path))
    assert len(samples) == 2000
    for image_id in range(0, 2000, 50):
        expected = np.flatnonzero(owners == image_id)
        assert samples[image_id].objects.ids.tolist() == expected.tolist()
        np.testing.assert_array_equal(samples[image_id].objects.boxes[:, :2], boxes[expected, :2])
