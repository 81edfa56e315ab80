from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fullfield.data.detection.copy_paste import copy_paste
from fullfield.data.detection.geometry import AnnotatedImage

from .pictures import annotated


def masks_of(example: AnnotatedImage) -> torch.Tensor:
    assert isinstance(example.masks, torch.Tensor)
    return example.masks


def giver(boxes: list[tuple[int, int, int, int]]) -> AnnotatedImage:
    """The objects have labels from 10 on and none is a crowd."""
    example = annotated(40, 60, boxes)
    return replace(example, labels=example.labels + 10, crowd=torch.zeros(len(boxes), dtype=torch.bool))


def test_result_equals_a_loop_over_pixels() -> None:
    below = annotated(40, 60, [(2, 2, 20, 20), (30, 5, 50, 35)])
    above = giver([(10, 10, 40, 30), (45, 0, 55, 10), (0, 35, 5, 40)])
    above = replace(above, crowd=torch.tensor([False, False, True]))
    result = copy_paste(below, above)
    expected = np.asarray(below.image).copy()
    owner = np.full((40, 60), -1)
    for y in range(40):
        for x in range(60):
            for i in range(2):
                if masks_of(below)[i, y, x]:
                    owner[y, x] = i
            for j in range(3):
                if not above.crowd[j] and masks_of(above)[j, y, x]:
                    owner[y, x] = 10 + j
                    expected[y, x] = np.asarray(above.image)[y, x]
    assert np.array_equal(np.asarray(result.image), expected)
    assert result.labels.tolist() == [0, 1, 10, 11]
    assert result.crowd.tolist() == [False, True, False, False]
    for i, label in enumerate(result.labels.tolist()):
        assert np.array_equal(masks_of(result)[i].numpy(), owner == label)
        rows, columns = np.nonzero(owner == label)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert result.boxes[i].tolist() == box


@pytest.mark.parametrize(("width", "labels"), [(17, [0, 10]), (19, [10]), (20, [10])])
def test_object_that_is_nearly_hidden_is_left_out(width: int, labels: list[int]) -> None:
    below = annotated(40, 60, [(0, 0, 20, 20)])
    assert copy_paste(below, giver([(0, 0, width, 20)])).labels.tolist() == labels


def test_crowd_stays_while_a_pixel_of_it_does_and_is_never_pasted() -> None:
    below = annotated(40, 60, [(50, 30, 60, 40), (0, 0, 20, 20)])
    result = copy_paste(below, giver([(0, 0, 19, 20)]))
    assert result.labels.tolist() == [0, 1, 10]
    assert result.boxes[1].tolist() == [19, 0, 20, 20]
    above = annotated(40, 60, [(0, 0, 5, 5), (10, 10, 20, 20)])
    assert copy_paste(below, above).labels.tolist() == [0, 1, 0]


def test_objects_that_are_not_touched_keep_their_boxes() -> None:
    below = annotated(40, 60, [(2, 2, 12, 12)])
    below.boxes[0] = torch.tensor([2.25, 2.5, 11.75, 12.0])
    assert copy_paste(below, giver([(30, 30, 40, 40)])).boxes[0].tolist() == [
        2.25,
        2.5,
        11.75,
        12,
    ]


def test_what_is_pasted_from_stays_as_it_was() -> None:
    below, above = annotated(40, 60, [(0, 0, 20, 20)]), giver([(10, 10, 30, 30)])
    before = masks_of(below).clone(), masks_of(above).clone(), below.image.tobytes()
    copy_paste(below, above)
    assert torch.equal(masks_of(below), before[0])
    assert torch.equal(masks_of(above), before[1])
    assert below.image.tobytes() == before[2]


def test_no_objects_to_paste_changes_nothing() -> None:
    below, above = annotated(40, 60, [(0, 0, 20, 20)]), giver([(10, 10, 30, 30)])
    assert copy_paste(below, giver([])) is below
    received = copy_paste(annotated(40, 60, []), above)
    assert received.labels.tolist() == [10]
    assert torch.equal(masks_of(received), masks_of(above))
