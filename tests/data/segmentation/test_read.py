from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fullfield.data.segmentation import ade20k, cityscapes
from fullfield.data.segmentation.label_image import LabelCode, read_label_map
from fullfield.data.segmentation.read import is_segmentation_data, read_segmentation_data
from fullfield.errors import ConfigError, DataError

# What cityscapesscripts calls id -> trainId, written down from its table; all other ids are not evaluated.
CITYSCAPES_TRAIN_IDS = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12}
CITYSCAPES_TRAIN_IDS |= {26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write an image of some values, or a picture, below `tmp_path`."""

    def write(name: str, values: object = None) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if values is None:
            Image.new("RGB", (4, 3), "teal").save(path)
        else:
            Image.fromarray(np.resize(np.array(values, dtype=np.uint8), (3, 4))).save(path)
        return path

    return write


def names(samples: tuple[object, ...]) -> list[tuple[str, str]]:
    return [(sample.path.name, sample.mask.name) for sample in samples]  # type: ignore[attr-defined]


@pytest.mark.parametrize("arrangement", ["{split}/{what}/{name}", "{what}/{split}/{name}"])
@pytest.mark.parametrize("masks", ["masks", "labels", "annotations"])
def test_folders_of_splits_are_read_in_either_order(tmp_path: Path, save: Save, arrangement: str, masks: str) -> None:
    for split, count in (("train", 3), ("Valid", 2), ("test", 1)):
        for i in range(count):
            save(arrangement.format(split=split, what="images", name=f"{i}.jpg"))
            save(arrangement.format(split=split, what=masks, name=f"{i}.png"), [0, 1])
    assert is_segmentation_data(tmp_path)
    data = read_segmentation_data(tmp_path)
    assert {split: len(samples) for split, samples in data.splits.items()} == {"train": 3, "val": 2, "test": 1}
    assert names(data.splits["train"]) == [(f"{i}.jpg", f"{i}.png") for i in range(3)]
    assert data.source == str(tmp_path)


def test_validation_part_is_cut_by_image_and_a_function_of_the_seed(tmp_path: Path, save: Save) -> None:
    for i in range(20):
        save(f"images/sub/{i:02}.jpg")
        save(f"masks/sub/{i:02}.png", [0, 1])
    first, again, other = (read_segmentation_data(tmp_path, val_share=0.2, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.splits != other.splits
    assert len(first.splits["val"]) == 4
    assert len({*first.splits["val"], *first.splits["train"]}) == 20
    assert any("4 of 20 training images were set aside" in note for note in first.notes)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        read_segmentation_data(tmp_path, val_share=1.0)


def test_label_maps_may_carry_an_ending(tmp_path: Path, save: Save) -> None:
    for name, mask in (("a.jpg", "a_mask.png"), ("b.jpg", "b_label.png"), ("c.png", "c_seg.png"), ("d_seg.png",) * 2):
        save(f"images/{name}")
        save(f"masks/{mask}", [0, 1])
    data = read_segmentation_data(tmp_path)
    assert sorted(names(data.splits["train"] + data.splits["val"])) == [
        ("a.jpg", "a_mask.png"),
        ("b.jpg", "b_label.png"),
        ("c.png", "c_seg.png"),
        ("d_seg.png", "d_seg.png"),
    ]


def test_images_and_label_maps_without_the_other_are_counted_named_and_skipped(tmp_path: Path, save: Save) -> None:
    for i in range(4):
        save(f"images/{i}.jpg")
        save(f"masks/{i}.png", [0, 1])
    save("images/lonely.jpg")
    save("masks/stray.png", [0, 1])
    data = read_segmentation_data(tmp_path)
    assert len(data.splits["train"]) + len(data.splits["val"]) == 4
    assert "Skipped 1 of 5 images of the train part, which have no label map: 'lonely.jpg'." in data.notes
    assert "Skipped 1 of 5 label maps of the train part, which have no image: 'stray.png'." in data.notes


@pytest.mark.parametrize(
    ("extra", "reason"), [("images/x{}.jpg", "6 of 11 images"), ("masks/x{}.png", "6 of 11 label")]
)
def test_more_than_half_without_the_other_are_refused(tmp_path: Path, save: Save, extra: str, reason: str) -> None:
    for i in range(5):
        save(f"images/{i}.jpg")
        save(f"masks/{i}.png", [0, 1])
    for i in range(6):
        save(extra.format(i), [0, 1])
    with pytest.raises(DataError, match=rf"{reason}.* of the train part have no .*x0"):
        read_segmentation_data(tmp_path)


def test_two_files_of_one_name_are_refused(tmp_path: Path, save: Save) -> None:
    for i in range(3):
        save(f"images/{i}.jpg")
        save(f"masks/{i}.png", [0, 1])
    double = save("masks/1_mask.png", [0, 1])
    with pytest.raises(DataError, match=r"label maps '1\.png' and '1_mask\.png' have one name"):
        read_segmentation_data(tmp_path)
    double.unlink()
    save("images/1.png")
    with pytest.raises(DataError, match=r"images '1\.jpg' and '1\.png' have one name"):
        read_segmentation_data(tmp_path)


def test_jpeg_label_maps_are_refused_with_the_reason(tmp_path: Path, save: Save) -> None:
    for i in range(2):
        save(f"images/{i}.jpg")
        save(f"masks/{i}.jpg", [0, 1])
    assert is_segmentation_data(tmp_path)
    with pytest.raises(DataError, match=r"2 of 2 label maps are JPEG or WebP .*0\.jpg.*lossy"):
        read_segmentation_data(tmp_path)


def two_pairs(save: Save, *masks: object) -> None:
    for i, values in enumerate(masks):
        save(f"train/images/{i}.png")
        save(f"train/masks/{i}.png", values)
        save(f"val/images/{i}.png")
        save(f"val/masks/{i}.png", values)


def test_without_class_file_the_classes_are_the_values_found(tmp_path: Path, save: Save) -> None:
    two_pairs(save, [0, 2], [255, 7])
    data = read_segmentation_data(tmp_path)
    assert data.classes == ("class 0", "class 2", "class 7")
    assert data.values == {0: 0, 2: 1, 7: 2, 255: 255}
    assert any("found in 4 label maps; 255 is taken as not labelled" in note for note in data.notes)
    assert len(set(data.colours)) == 3


def test_binary_masks_of_0_and_255_have_two_classes(tmp_path: Path, save: Save) -> None:
    two_pairs(save, [0, 255])
    data = read_segmentation_data(tmp_path)
    assert data.values == {0: 0, 255: 1}
    (tmp_path / "classes.txt").write_text("background\ncell\n")
    with pytest.raises(DataError, match=r"0 and 255 alone.*'values': \[0, 255\]"):
        read_segmentation_data(tmp_path)
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "classes.json").write_text('{"classes": ["background", "cell"], "values": [0, 255]}')
    data = read_segmentation_data(tmp_path)
    assert (data.values, data.notes) == ({0: 0, 255: 1}, ())


def test_a_single_value_and_too_many_values_are_refused(tmp_path: Path, save: Save) -> None:
    two_pairs(save, [3])
    with pytest.raises(DataError, match="two classes are needed"):
        read_segmentation_data(tmp_path)
    for split in ("train", "val"):
        values = np.arange(300, dtype=np.uint16).reshape(15, 20)
        Image.fromarray(values).save(tmp_path / split / "masks" / "0.png")
    with pytest.raises(DataError, match=r"hold 299 values, from 0 to 299.*class file"):
        read_segmentation_data(tmp_path)


RED_GREEN = [[[255, 0, 0], [0, 255, 0], [0, 255, 0], [9, 9, 9]]] * 3


def coloured(save: Save, tmp_path: Path) -> None:
    two_pairs(save, [0])
    for split in ("train", "val"):
        Image.fromarray(np.array(RED_GREEN, np.uint8)).save(tmp_path / split / "masks" / "0.png")


def test_coloured_label_maps_are_read_by_the_class_file(tmp_path: Path, save: Save) -> None:
    coloured(save, tmp_path)
    with pytest.raises(DataError, match=r"RGB pictures \('0\.png' holds the colours '\(0, 255, 0\)'"):
        read_segmentation_data(tmp_path)
    content = {"classes": ["r", "g"], "colours": [[255, 0, 0], [0, 255, 0]], "ignore": [[9, 9, 9]]}
    (tmp_path / "classes.json").write_text(json.dumps(content))
    data = read_segmentation_data(tmp_path)
    assert (data.by_colour, data.colours) == (True, ((255, 0, 0), (0, 255, 0)))
    labels = read_label_map(data.splits["train"][0].mask, LabelCode.of(data))
    assert labels.tolist() == [[0, 1, 1, 255]] * 3


def test_coloured_label_maps_are_refused_where_the_class_file_gives_numbers(tmp_path: Path, save: Save) -> None:
    coloured(save, tmp_path)
    (tmp_path / "classes.json").write_text('{"classes": ["r", "g"], "values": [0, 1]}')
    with pytest.raises(DataError, match=r"2 of 2 label maps do not fit.*0\.png: is an RGB picture"):
        read_segmentation_data(tmp_path)
    (tmp_path / "classes.json").write_text('["r", "g"]')
    with pytest.raises(DataError, match="add the colours of the classes"):
        read_segmentation_data(tmp_path)


def test_colour_of_no_class_is_refused_with_file_and_place_if_it_is_common(tmp_path: Path, save: Save) -> None:
    coloured(save, tmp_path)
    (tmp_path / "classes.json").write_text('{"classes": ["r", "g"], "colours": [[255, 0, 0], [0, 255, 0]]}')
    with pytest.raises(DataError, match=r"2 of 2 label maps do not fit.*0\.png: the colour \(9, 9, 9\) at x=3, y=0"):
        read_segmentation_data(tmp_path)


def test_black_and_white_label_maps_go_by_colour_if_the_class_file_has_these(tmp_path: Path, save: Save) -> None:
    two_pairs(save, [0, 255])
    (tmp_path / "classes.csv").write_text("name,r,g,b\nfront,255,255,255\nback,0,0,0\n")
    data = read_segmentation_data(tmp_path)
    assert data.by_colour
    labels = read_label_map(data.splits["train"][0].mask, LabelCode.of(data))
    assert labels.tolist() == [[1, 0, 1, 0]] * 3


def test_a_rare_value_of_no_class_is_told_and_a_common_one_refused(tmp_path: Path, save: Save) -> None:
    two_pairs(save, [0, 1], [1, 0], [0, 255], [0, 5])
    (tmp_path / "classes.txt").write_text("a\nb\n")
    data = read_segmentation_data(tmp_path)
    assert len(data.notes) == 1
    assert data.notes[0].startswith("2 of 8 label maps looked into cannot be used; the first: ")
    assert "3.png: the value 5 at x=1, y=0" in data.notes[0]
    (tmp_path / "classes.txt").write_text("a\n")
    with pytest.raises(DataError, match=r"6 of 8 label maps do not fit the classes.*value 1"):
        read_segmentation_data(tmp_path)


def test_broken_label_maps_are_told_and_refused_if_all_are(tmp_path: Path, save: Save) -> None:
    two_pairs(save, [0, 1], [1, 0])
    (tmp_path / "train/masks/1.png").write_bytes(b"")
    data = read_segmentation_data(tmp_path)
    assert any("1 of 4 label maps looked into cannot be used" in note and "1.png" in note for note in data.notes)
    for path in tmp_path.glob("*/masks/*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"None of 4 label maps can be read; the first: .*0\.png"):
        read_segmentation_data(tmp_path)


def test_what_is_no_segmentation_data_is_told_apart(tmp_path: Path, save: Save) -> None:
    save("yolo/images/train/0.jpg")
    (tmp_path / "yolo/labels/train").mkdir(parents=True)
    (tmp_path / "yolo/labels/train/0.txt").write_text("0 0.5 0.5 1 1")
    save("coco/images/0.jpg")
    save("coco/annotations/panoptic/0.png", [0, 1])
    (tmp_path / "coco/annotations/instances.json").write_text("{}")
    save("classes/cat/0.jpg")
    for name in ("yolo", "coco", "classes", "missing"):
        assert not is_segmentation_data(tmp_path / name)
        with pytest.raises(DataError, match="does not exist" if name == "missing" else "were recognised"):
            read_segmentation_data(tmp_path / name)
    assert not is_segmentation_data("sample:none")
    with pytest.raises(DataError, match="is a file; expected a folder"):
        read_segmentation_data(tmp_path / "classes/cat/0.jpg")


def test_part_without_label_maps_is_left_out_and_said(tmp_path: Path, save: Save) -> None:
    two_pairs(save, [0, 1], [1, 0])
    save("test/images/0.jpg")
    data = read_segmentation_data(tmp_path)
    assert set(data.splits) == {"train", "val"}
    assert "The test part (1 images) has no labels and was left out." in data.notes


def test_ade20k_has_150_classes_and_0_is_not_labelled(tmp_path: Path, save: Save) -> None:
    for split, count in (("training", 2), ("validation", 1)):
        for i in range(count):
            save(f"images/{split}/ADE_{i}.jpg")
            save(f"annotations/{split}/ADE_{i}.png", [0, 1, 2, 150])
    assert is_segmentation_data(tmp_path)
    data = read_segmentation_data(tmp_path)
    assert (len(data.classes), len(set(data.classes)), len(set(data.colours))) == (150, 150, 150)
    # from the benchmark's table: 1 wall, 13 person, 21 car, 46 counter, 100 buffet, 150 flag
    assert [data.classes[i - 1] for i in (1, 13, 21, 46, 100, 150)] == [
        "wall",
        "person",
        "car",
        "counter",
        "buffet",
        "flag",
    ]
    assert {split: len(samples) for split, samples in data.splits.items()} == {"train": 2, "val": 1}
    labels = read_label_map(data.splits["train"][0].mask, LabelCode.of(data))
    assert labels.tolist() == [[255, 0, 1, 149]] * 3
    assert any("Read as ADE20K" in note for note in data.notes)
    (tmp_path / "classes.txt").write_text("\n".join(f"c{i}" for i in range(151)))
    assert read_segmentation_data(tmp_path).classes[150] == "c150"
    assert {0: 255, **{i + 1: i for i in range(150)}} == ade20k.VALUES


def city(save: Save, split: str, name: str, kind: str, values: object) -> None:
    save(f"leftImg8bit/{split}/{name}_leftImg8bit.png")
    save(f"gtFine/{split}/{name}_gtFine_{kind}.png", values)
    save(f"gtFine/{split}/{name}_gtFine_color.png")


def test_cityscapes_numbers_become_train_ids(tmp_path: Path, save: Save) -> None:
    city(save, "train", "aachen/aachen_000000_000019", "labelIds", list(range(12)))
    city(save, "val", "ulm/ulm_000000_000019", "labelIds", list(range(22, 34)))
    city(save, "test", "bonn/bonn_000000_000019", "labelIds", [0, 1, 3])  # as published: without labels
    assert is_segmentation_data(tmp_path)
    data = read_segmentation_data(tmp_path)
    assert set(data.splits) == {"train", "val"}
    assert "The test part (1 images) has no labels and was left out." in data.notes
    assert data.classes[0] == "road"
    assert data.classes[18] == "bicycle"
    assert data.colours[13] == (0, 0, 142)  # car
    assert data.values == {number: CITYSCAPES_TRAIN_IDS.get(number, 255) for number in range(34)}
    for split, first in (("train", 0), ("val", 22)):
        labels = read_label_map(data.splits[split][0].mask, LabelCode.of(data)).ravel().tolist()
        assert labels == [CITYSCAPES_TRAIN_IDS.get(number, 255) for number in range(first, first + 12)]


def test_cityscapes_train_ids_are_taken_where_there_are_no_numbers(tmp_path: Path, save: Save) -> None:
    city(save, "train", "aachen/aachen_000000_000019", "labelTrainIds", [0, 18, 255])
    city(save, "train", "ulm/ulm_000000_000019", "labelTrainIds", [3])
    city(save, "test", "bonn/bonn_000000_000019", "labelTrainIds", [5])
    data = read_segmentation_data(tmp_path)
    assert data.values is None
    assert {split: len(samples) for split, samples in data.splits.items()} == {"train": 1, "val": 1, "test": 1}
    masks = [sample.mask for sample in data.splits["train"] + data.splits["val"]]
    labels = {int(label) for mask in masks for label in np.unique(read_label_map(mask, LabelCode.of(data)))}
    assert labels == {0, 3, 18, 255}


def test_cityscapes_without_label_maps_says_what_to_unpack(tmp_path: Path, save: Save) -> None:
    save("leftImg8bit/train/aachen/a_leftImg8bit.png")
    (tmp_path / "gtFine").mkdir()
    with pytest.raises(DataError, match="gtFine_trainvaltest"):
        read_segmentation_data(tmp_path)
    assert len(cityscapes.CLASSES) == len(set(cityscapes.COLOURS)) == 19


def test_camvid_is_read_as_published(shared_data: Path) -> None:
    root = shared_data / "camvid11"
    assert is_segmentation_data(root)
    data = read_segmentation_data(root)
    assert {split: len(samples) for split, samples in data.splits.items()} == {"train": 367, "val": 101, "test": 233}
    assert data.classes == tuple(json.loads((root / "classes.json").read_text())["classes"])
    assert (data.by_colour, data.ignore_index, data.notes) == (False, 255, ())
    for other in ("coco_cc", "nuclei_coco", "bccd_coco", "caltech99"):
        assert not is_segmentation_data(shared_data / other)
