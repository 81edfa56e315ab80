from __future__ import annotations

from pathlib import Path

import pytest

from fullfield.data import ImageData
from fullfield.data.labels import Found, labelled_data
from fullfield.data.place import Archive, TarPlace
from fullfield.errors import ConfigError, DataError

PLACE = TarPlace(Archive(Path("a.tar"), 1, 1), 0, 1)
NAMES = ("ant", "bee", "cat")


def read(names: tuple[str, ...] | None = None, val_share: float = 0.5, **parts: list[int | str | None]) -> ImageData:
    found = {
        split: [Found(Path(f"a.tar/{split}{number}"), label, PLACE) for number, label in enumerate(labels)]
        for split, labels in parts.items()
    }
    return labelled_data("a.tar", found, names, notes=["first"], val_share=val_share, seed=0)


def labels(data: ImageData, split: str = "train") -> list[str]:
    return [data.classes[sample.label] for sample in data.splits[split]]


def test_numbers_are_positions_among_the_names() -> None:
    data = read(NAMES, train=[2, 0, 1, 2], val=[1])
    assert data.classes == NAMES
    assert labels(data) == ["cat", "ant", "bee", "cat"]
    assert labels(data, "val") == ["bee"]
    assert data.splits["train"][0].place is PLACE


def test_names_are_found_among_the_names() -> None:
    assert labels(read(NAMES, train=["cat", "ant"], val=["bee"])) == ["cat", "ant"]


def test_without_names_the_labels_are_the_classes_sorted_by_value_or_as_text() -> None:
    assert read(None, train=[10, 9, 100], val=[9]).classes == ("9", "10", "100")
    assert read(None, train=["b", "a", 10, 9], val=["a"]).classes == ("10", "9", "a", "b")


def test_validation_is_cut_where_there_is_none() -> None:
    data = read(NAMES, train=[0, 1, 2] * 4)
    assert data.counts("val") == [2, 2, 2]
    assert "6 of 12 training images were set aside" in data.notes[0]
    assert data.notes[-1] == "first"


def test_part_whose_labels_are_withheld_is_left_out() -> None:
    data = read(NAMES, train=[0, 1], val=[1], test=[-1, -1, -1])
    assert set(data.splits) == {"train", "val"}
    assert "The test part (3 images) has no labels and was left out." in data.notes


def test_class_without_a_training_image_is_said() -> None:
    assert "Classes without a training image: 'bee'." in read(NAMES, train=[0, 2], val=[1]).notes


@pytest.mark.parametrize(
    ("names", "parts", "says"),
    [
        (NAMES, {"train": [0, 3]}, r"a\.tar/train1: the label is 3, but the 3 classes count from 0 to 2"),
        (NAMES, {"train": [0, -7]}, "the label is -7"),
        (NAMES, {"train": ["ant", "bea"]}, r"the label 'bea' is not among the 3 class names; did you mean 'bee'"),
        (NAMES, {"train": ["ant", 1]}, r"the label 1 is not among the 3 class names"),
        (None, {"train": ["ant", "bee"], "val": ["be"]}, r"val0: the label 'be' occurs in val but not in train; did"),
        (None, {"train": [0, 1], "test": [2]}, "the label 2 occurs in test but not in train"),
        (NAMES, {"train": [0, None, 1, ""]}, r"2 images without a label: 'a\.tar/train1', 'a\.tar/train3'"),
        (NAMES, {"train": [0, 1], "val": [0, -1]}, r"1 image without a label: 'a\.tar/val1'"),
        (NAMES, {"val": [0]}, "holds no images to train on"),
        (NAMES, {"train": []}, "holds no images to train on"),
        (None, {"train": [5, 5]}, "has only one class, '5'"),
        (("only",), {"train": [0]}, "has only one class, 'only'"),
        (("a", "b", "a"), {"train": [0]}, "class names repeat 'a'"),
    ],
)
def test_labels_that_fit_no_class_are_refused(
    names: tuple[str, ...] | None, parts: dict[str, list[int | str | None]], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        read(names, **parts)


def test_impossible_share_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"held-out share is 2\.0"):
        read(NAMES, 2.0, train=[0, 1])
