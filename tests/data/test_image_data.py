from __future__ import annotations

from pathlib import Path

import pytest

from fullfield.data import ImageData, Sample
from fullfield.data.image_data import canonical_split, quote_some
from fullfield.errors import DataError


def samples(*labels: int) -> tuple[Sample, ...]:
    return tuple(Sample(Path(f"{i}.jpg"), label) for i, label in enumerate(labels))


def test_counts_include_classes_without_images() -> None:
    data = ImageData("x", ("a", "b", "c"), {"train": samples(0, 1, 1, 2), "val": samples(2, 2)})
    assert data.counts("train") == [1, 2, 1]
    assert data.counts("val") == [0, 0, 2]


def test_majority_is_the_accuracy_of_the_best_constant_guess() -> None:
    labels = (0, 1, 1, 2)
    data = ImageData("x", ("a", "b", "c"), {"train": samples(*labels), "val": samples(0)})
    assert data.majority("train") == max(sum(guess == label for label in labels) for guess in range(3)) / 4


def test_absent_split_is_named_with_those_there_are() -> None:
    data = ImageData("pets", ("a", "b"), {"train": samples(0, 1), "val": samples(0)})
    with pytest.raises(DataError, match=r"pets: has no split 'test'; it has 'train', 'val'"):
        data.counts("test")


@pytest.mark.parametrize("splits", [{}, {"train": samples(0)}, {"train": (), "val": samples(0)}])
def test_train_and_val_must_hold_images(splits: dict[str, tuple[Sample, ...]]) -> None:
    with pytest.raises(DataError, match="has no images"):
        ImageData("x", ("a",), splits)


def test_unknown_split_is_refused() -> None:
    with pytest.raises(DataError, match="unknown split 'dev'"):
        ImageData("x", ("a",), {"train": samples(0), "val": samples(0), "dev": samples(0)})


@pytest.mark.parametrize(
    ("name", "split"),
    [("Train", "train"), ("VALID", "val"), (" validation ", "val"), ("Testing", "test"), ("trains", None), ("", None)],
)
def test_spellings_of_a_split(name: str, split: str | None) -> None:
    assert canonical_split(name) == split


def test_long_lists_of_names_are_cut_and_counted() -> None:
    assert quote_some("abc") == "'a', 'b', 'c'"
    assert quote_some("abcdefg") == "'a', 'b', 'c', 'd', 'e' and 2 more"
