from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms

from fullfield.deploy.answer_classify import label_answers
from fullfield.deploy.answer_detect import Objects, choose_objects, object_answer
from fullfield.deploy.answer_segment import likeliest_labels, pixel_answer
from fullfield.deploy.description import Selection
from fullfield.errors import CheckpointError
from fullfield.tasks.detection.arguments import FCOSArguments, RetinaNetArguments
from fullfield.tasks.detection.coco_form import named_objects
from fullfield.tasks.detection.detections import in_original_pixels
from fullfield.tasks.detection.one_stage import FCOS, STRIDES, RetinaNet

PADDED, SEEN = (96, 160), (90, 131)
HERE = Path("a.jpg")


def head_outputs(head: Any, batch: int, *, spread: float = 3.0) -> tuple[dict[str, Tensor], list[Tensor], list[int]]:
    """Random answers of a head for the maps of an input of `PADDED` pixels, its anchors, and the places of each map."""
    each = head.anchor_generator.num_anchors_per_location()[0]
    maps = [torch.zeros(1, 8, -(-PADDED[0] // s), -(-PADDED[1] // s)) for s in STRIDES]
    anchors = head.anchor_generator(ImageList(torch.zeros(batch, 3, *PADDED), [SEEN] * batch), maps)
    counts = [x.shape[2] * x.shape[3] * each for x in maps]
    shapes = {"cls_logits": 4, "bbox_regression": 4, "bbox_ctrness": 1}
    outputs = {key: spread * torch.randn(batch, sum(counts), width) for key, width in shapes.items()}
    return outputs, anchors, counts


def retinanet(**arguments: Any) -> Any:
    return RetinaNet(RetinaNetArguments(fpn_channels=8, convs=1, **arguments), 4)


def fcos(**arguments: Any) -> Any:
    return FCOS(FCOSArguments(fpn_channels=8, convs=1, **arguments), 4)


def torchvision_choice(head: Any, outputs: dict[str, Tensor], anchors: list[Tensor], counts: list[int]) -> Any:
    split = {key: list(x.split(counts, 1)) for key, x in outputs.items()}
    per_level = [list(one.split(counts)) for one in anchors]
    return head.postprocess_detections(split, per_level, [SEEN] * len(anchors))


def decoded(head: Any, outputs: dict[str, Tensor], anchors: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """What an exported graph gives for the same answers of the head: boxes (B, N, 4) and scores (B, N, K)."""
    scores = outputs["cls_logits"].sigmoid()
    if isinstance(head, FCOS):
        scores = (scores * outputs["bbox_ctrness"].sigmoid()).sqrt()
        decode = head.box_coder.decode
    else:
        decode = head.box_coder.decode_single
    boxes = torch.stack([decode(one, place) for one, place in zip(outputs["bbox_regression"], anchors, strict=True)])
    return boxes.numpy(), scores.numpy()


def selection_of(head: Any) -> Selection:
    each = head.anchor_generator.num_anchors_per_location()[0]
    return Selection(STRIDES, each, head.score_thresh, head.topk_candidates, head.nms_thresh, head.detections_per_img)


def assert_same_objects(found: Objects, expected: dict[str, Tensor]) -> None:
    """The same objects; torchvision leaves the order of equal scores open, and a sigmoid's last bit to the layout."""
    boxes, scores, labels = (expected[key].numpy() for key in ("boxes", "scores", "labels"))
    mine, theirs = np.lexsort((found.scores, found.labels)), np.lexsort((scores, labels))
    assert np.array_equal(found.labels[mine], labels[theirs])
    assert np.allclose(found.scores[mine], scores[theirs], rtol=1e-6, atol=0)
    assert np.allclose(found.boxes[mine], boxes[theirs], rtol=0, atol=1e-4)


@pytest.mark.parametrize("spread", [0.3, 3.0])
@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (retinanet, {}),
        (retinanet, {"candidates": 17, "detections": 9, "score_threshold": 0.3, "nms_threshold": 0.2}),
        (fcos, {}),
        (fcos, {"candidates": 10, "detections": 300, "score_threshold": 0.0}),
    ],
)
def test_the_objects_are_those_that_torchvision_chooses(make: Any, arguments: dict[str, Any], spread: float) -> None:
    head = make(**arguments)
    outputs, anchors, counts = head_outputs(head, 2, spread=spread)
    expected = torchvision_choice(head, outputs, anchors, counts)
    for boxes, scores, want in zip(*decoded(head, outputs, anchors), expected, strict=True):
        found = choose_objects(boxes, scores, selection_of(head), padded=PADDED, seen=SEEN)
        assert len(found.scores) == len(want["scores"]) > 0
        assert (np.diff(found.scores) <= 0).all()
        assert_same_objects(found, want)


def test_no_score_above_the_threshold_gives_no_object() -> None:
    head = fcos()
    outputs, anchors, _ = head_outputs(head, 1)
    boxes, scores = decoded(head, outputs, anchors)
    for nothing in (np.zeros_like(scores[0]), np.full_like(scores[0], np.nan)):
        found = choose_objects(boxes[0], nothing, selection_of(head), padded=PADDED, seen=SEEN)
        assert found.boxes.shape == (0, 4)
        assert len(found.scores) == len(found.labels) == 0
        assert object_answer(HERE, found, "abcd", seen=SEEN, original=(10, 10), threshold=0).detections == ()


def test_scores_that_are_not_numbers_are_left_out_as_torchvision_does() -> None:
    head = retinanet()
    outputs, anchors, counts = head_outputs(head, 1)
    outputs["cls_logits"][0, ::3] = float("nan")
    expected = torchvision_choice(head, outputs, anchors, counts)[0]
    boxes, scores = (one[0] for one in decoded(head, outputs, anchors))
    found = choose_objects(boxes, scores, selection_of(head), padded=PADDED, seen=SEEN)
    assert len(found.scores) > 0
    assert_same_objects(found, expected)


def test_a_box_that_is_not_finite_is_dropped_and_decides_over_none() -> None:
    boxes, scores = grid(2)
    sound = choose_objects(boxes, scores, RULE, padded=(64, 64), seen=(64, 64))
    boxes = np.concatenate([boxes, boxes[:1]])
    boxes[-1, 2] = np.nan
    scores = np.concatenate([scores, np.full_like(scores[:1], 0.99)])
    rule = Selection((32, 64), 1, 0.1, 100, 0.5, 100)
    found = choose_objects(boxes, scores, rule, padded=(64, 64), seen=(64, 64))
    assert np.array_equal(found.boxes, sound.boxes)
    assert np.array_equal(found.scores, sound.scores)


RULE = Selection((32,), 1, score_threshold=0.1, candidates=100, nms_threshold=0.5, detections=100)


def grid(classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Four boxes on a map of 2 x 2 places and random scores."""
    boxes = np.array([[0, 0, 32, 32], [32, 0, 64, 32], [0, 32, 32, 64], [32, 32, 64, 64]], np.float32)
    return boxes, np.random.default_rng(0).uniform(0.2, 0.9, (4, classes)).astype(np.float32)


def test_of_equal_scores_the_earlier_place_comes_first_and_suppresses_the_later() -> None:
    boxes = np.array([[0, 0, 30, 30], [1, 1, 31, 31], [0, 40, 20, 60], [40, 0, 60, 20]], np.float32)
    scores = np.full((4, 1), 0.5, np.float32)
    found = choose_objects(boxes, scores, RULE, padded=(64, 64), seen=(64, 64))
    assert np.array_equal(found.boxes, boxes[[0, 2, 3]])
    two = choose_objects(boxes, scores, Selection((32,), 1, 0.1, 3, 0.5, 100), padded=(64, 64), seen=(64, 64))
    assert np.array_equal(two.boxes, boxes[[0, 2]])  # the limit of candidates, too, takes the earlier


@pytest.mark.parametrize("number", [200, 1500])  # below and above where torchvision shifts classes apart
def test_many_equal_scores_leave_the_boxes_that_torchvision_leaves(number: int) -> None:
    rng = np.random.default_rng(number)
    low = rng.uniform(0, 500, (number, 2))
    boxes = np.concatenate([low, low + rng.uniform(5, 200, (number, 2))], 1).astype(np.float32)
    labels = rng.integers(0, 3, number)
    scores = np.zeros((number, 3), np.float32)
    scores[np.arange(number), labels] = rng.choice([0.3, 0.5, 0.8], number).astype(np.float32)
    rule = Selection((1,), 1, 0.1, 10_000, 0.5, 10_000)
    found = choose_objects(boxes, scores, rule, padded=(1, number), seen=(10_000, 10_000))
    # candidates by score, of equal ones the earlier first: then torchvision's own suppression is deterministic
    order = np.argsort(-scores.max(1), kind="stable")
    surest, kinds = torch.from_numpy(scores.max(1)[order]), torch.from_numpy(labels[order])
    kept = batched_nms(torch.from_numpy(boxes[order]), surest, kinds, 0.5).numpy()
    assert 0 < len(kept) < number
    assert {tuple(box) for box in found.boxes.tolist()} == {tuple(box) for box in boxes[order][kept].tolist()}


def test_boxes_without_area_do_not_suppress_each_other() -> None:
    boxes = np.zeros((4, 4), np.float32)
    found = choose_objects(boxes, np.full((4, 1), 0.5, np.float32), RULE, padded=(64, 64), seen=(64, 64))
    assert len(found.scores) == 4  # as in torchvision, whose 0 / 0 is above no threshold
    answer = object_answer(HERE, found, "a", seen=(64, 64), original=(64, 64), threshold=0)
    assert answer.detections == ()


def test_a_wrong_number_of_boxes_is_named() -> None:
    boxes, scores = grid(1)
    with pytest.raises(CheckpointError, match=r"boxes \(4, 4\).*its maps have 6 places"):
        choose_objects(boxes, scores, RULE, padded=(64, 96), seen=(64, 96))


@pytest.mark.parametrize("original", [(45, 262), (333, 400), (90, 131), (1, 1)])
def test_objects_come_back_in_the_originals_pixels_as_from_the_detector(original: tuple[int, int]) -> None:
    head = fcos()
    outputs, anchors, counts = head_outputs(head, 1)
    raw = torchvision_choice(head, outputs, anchors, counts)[0]
    expected = named_objects(in_original_pixels(raw, SEEN, original), "abcd", threshold=0.6)
    found = Objects(raw["boxes"].numpy(), raw["scores"].numpy(), raw["labels"].numpy())
    answer = object_answer(HERE, found, "abcd", seen=SEEN, original=original, threshold=0.6)
    assert answer.size == original
    assert answer.detections == expected
    assert all(type(edge) is float for one in answer.detections for edge in (*one.box, one.score))


def test_shares_and_their_order_are_those_of_torch() -> None:
    logits = torch.randn(5, 40) * 6
    best = logits.softmax(1).topk(7)
    classes = [f"class {number}" for number in range(40)]
    paths = [Path(str(number)) for number in range(5)]
    for one, path, indices, shares in zip(
        label_answers(paths, logits.numpy(), classes, 7), paths, best.indices.tolist(), best.values, strict=True
    ):
        assert one.path == path
        assert [name for name, _ in one.labels] == [classes[index] for index in indices]
        assert np.allclose([share for _, share in one.labels], shares.numpy(), rtol=1e-5, atol=0)


def test_equal_logits_keep_the_order_of_the_classes_and_large_ones_do_not_overflow() -> None:
    logits = np.array([[7, 7, 7], [-1e30, 3e38, 0]], np.float32)
    first, second = label_answers([HERE, HERE], logits, "abc", 5)
    assert [name for name, _ in first.labels] == ["a", "b", "c"]
    assert [share for _, share in first.labels] == pytest.approx([1 / 3] * 3)
    assert second.labels[0] == ("b", 1.0)


@pytest.mark.parametrize("size", [(37, 53), (200, 301), (20, 90), (74, 106), (1, 1), (1000, 3)])
def test_labels_are_the_likeliest_of_torchs_bilinear_logits(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.randn(6, 37, 53)
    resized = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    best = resized.topk(2, dim=0)
    clear = (best.values[0] - best.values[1]).numpy() > 1e-4  # elsewhere rounding decides
    assert clear.mean() > 0.99
    monkeypatch.setattr("fullfield.deploy.answer_segment._STRIP_VALUES", 6 * 301 * 7)  # several strips
    before = logits.numpy().copy()
    found = likeliest_labels(logits.numpy(), size)
    assert np.array_equal(found[clear], best.indices[0].numpy()[clear])
    assert np.array_equal(logits.numpy(), before)  # what the engine gave is not written into


def test_of_equal_logits_the_first_class_is_taken() -> None:
    assert not likeliest_labels(np.zeros((3, 8, 8), np.float32), (20, 20)).any()


def test_padding_never_reaches_the_label_map() -> None:
    logits = np.zeros((2, 32, 32), np.float32)
    logits[1, 20:] = logits[1, :, 25:] = 9  # class 1 in the padding alone
    answer = pixel_answer(HERE, logits, ("ground", "padding"), seen=(20, 25), original=(60, 75))
    assert answer.labels is not None
    assert answer.labels.shape == (60, 75)
    assert answer.labels.dtype == np.uint8
    assert answer.shares == (("ground", 1.0),)
