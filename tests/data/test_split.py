from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullfield.data import Sample, stratified_split
from fullfield.data.split import with_validation
from fullfield.errors import ConfigError, DataError

labels_of_any_kind = st.lists(st.integers(0, 6), max_size=120)
any_share = st.floats(0.01, 0.99)


@given(labels_of_any_kind, any_share, st.integers(0, 5))
def test_each_position_is_on_exactly_one_side(labels: list[int], share: float, seed: int) -> None:
    kept, held_out = stratified_split(labels, share, seed)
    assert kept == sorted(kept)
    assert held_out == sorted(held_out)
    assert sorted(kept + held_out) == list(range(len(labels)))


@given(labels_of_any_kind, any_share, st.integers(0, 5))
def test_each_class_of_two_is_on_both_sides_and_a_single_image_stays(
    labels: list[int], share: float, seed: int
) -> None:
    kept, held_out = stratified_split(labels, share, seed)
    kept_classes, held_out_classes = {labels[i] for i in kept}, {labels[i] for i in held_out}
    for label, count in Counter(labels).items():
        assert label in kept_classes
        assert (label in held_out_classes) == (count > 1)


@given(labels_of_any_kind, any_share)
def test_share_of_each_class_is_met_within_one_image(labels: list[int], share: float) -> None:
    _, held_out = stratified_split(labels, share, 0)
    taken = Counter(labels[i] for i in held_out)
    for label, count in Counter(labels).items():
        assert abs(taken[label] - count * share) <= 1


def test_seed_alone_decides() -> None:
    labels = [i % 3 for i in range(300)]
    assert stratified_split(labels, 0.2, 7) == stratified_split(labels, 0.2, 7)
    assert stratified_split(labels, 0.2, 7) != stratified_split(labels, 0.2, 8)


def test_images_added_to_one_class_do_not_move_those_of_another() -> None:
    _, before = stratified_split([0] * 40 + [1] * 10, 0.25, 0)
    _, after = stratified_split([0] * 40 + [1] * 30, 0.25, 0)
    assert [i for i in before if i < 40] == [i for i in after if i < 40]


def test_split_is_the_same_in_every_process_and_version() -> None:
    # Each test process has its own PYTHONHASHSEED, so a fixed answer shows independence of it as well.
    assert stratified_split([0, 1] * 10, 0.3, 0)[1] == [0, 7, 13, 16, 17, 18]


@pytest.mark.parametrize("share", [0, 1, -0.1, 15, float("nan")])
def test_share_outside_of_zero_to_one_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r"must lie between 0 and 1, for instance 0\.15"):
        stratified_split([0, 0, 1, 1], share, 0)


def samples(*labels: int) -> tuple[Sample, ...]:
    return tuple(Sample(Path(f"{i}.jpg"), label) for i, label in enumerate(labels))


def test_given_validation_part_is_left_alone() -> None:
    splits = {"train": samples(0, 0, 1), "val": samples(0, 1)}
    assert with_validation(splits, 0.5, 0) == (splits, [])


def test_validation_is_cut_from_train_and_test_is_kept() -> None:
    train, test = samples(*[0, 1] * 20), samples(0, 1, 1)
    splits, (note,) = with_validation({"train": train, "test": test}, 0.15, 3)
    assert splits["test"] == test
    assert len(splits["val"]) == 6
    assert sorted(splits["train"] + splits["val"], key=lambda s: int(s.path.stem)) == list(train)
    assert "6 of 40 training images" in note
    assert "15%, seed 3" in note
    assert "test part (3 images)" in note


def test_classes_of_one_image_leave_nothing_to_validate_on() -> None:
    with pytest.raises(DataError, match=r"No class has more than one training image \(2 in all.*Add images"):
        with_validation({"train": samples(0, 1)}, 0.15, 0)
