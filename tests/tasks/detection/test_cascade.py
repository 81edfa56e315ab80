"""The cascade against torchvision's `RoIHeads` where it has one stage, and against loops over single boxes elsewhere.

The loops work on Python floats and share nothing with the code under test but the heads' layers, torchvision's.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import nms

from fullfield.data.dense import DensePreprocess
from fullfield.errors import ConfigError
from fullfield.tasks.detection.arguments import FasterRCNNArguments, MaskRCNNArguments
from fullfield.tasks.detection.cascade import CascadeRoIHeads, ClassAgnosticPredictor, refined_boxes
from fullfield.tasks.detection.detector import Detector
from fullfield.tasks.detection.two_stage import BoxPredictor, cascade_rcnn, region_heads

CLASSES = 2
IOUS = (0.5, 0.6, 0.7)
BOX_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
LOSS_WEIGHTS = (1.0, 0.5, 0.25)
SIZES = [(64, 96), (50, 70)]
SMALL: dict[str, Any] = {"fpn_channels": 8, "box_features": 16, "detections": 50}
Floats = list[float]


def arguments(*, masks: bool = False, **changes: Any) -> FasterRCNNArguments:
    return MaskRCNNArguments(**SMALL, mask_features=8, **changes) if masks else FasterRCNNArguments(**SMALL, **changes)


def stage(index: int, **kind: Any) -> RoIHeads:
    predictor = ClassAgnosticPredictor(16, CLASSES)
    heads = region_heads(arguments(**kind), CLASSES, predictor, iou=IOUS[index], box_weights=BOX_WEIGHTS[index])
    nn.init.normal_(predictor.cls_score.weight, std=2.0)
    nn.init.normal_(predictor.bbox_pred.weight, std=3.0)
    return heads


def maps() -> dict[str, Tensor]:
    return {str(i): torch.randn(2, 8, -(-64 // s), -(-96 // s)) for i, s in enumerate((4, 8, 16, 32))}


def proposals() -> list[Tensor]:
    boxes = []
    for (height, width), objects in zip(SIZES, targets(), strict=True):
        corners = torch.rand(20, 2) * torch.tensor([width - 30, height - 30])
        free = torch.cat([corners, corners + 5 + torch.rand(20, 2) * 20], 1)
        near = objects["boxes"].repeat(8, 1) + torch.randn(8 * len(objects["boxes"]), 4) * 2
        boxes.append(torch.cat([free, near]))
    return boxes


def targets(*, empty: bool = False) -> list[dict[str, Tensor]]:
    boxes = [
        torch.tensor([[10.0, 12, 40, 50], [50, 5, 90, 30]]),
        torch.zeros(0, 4) if empty else torch.tensor([[20.0, 10, 50, 45]]),
    ]
    labels = [torch.tensor([1, 2]), torch.zeros(0, dtype=torch.int64) if empty else torch.tensor([2])]
    masks = []
    for (height, width), each in zip(SIZES, boxes, strict=True):
        mask = torch.zeros(len(each), height, width, dtype=torch.uint8)
        for one, (left, top, right, bottom) in zip(mask, each.long().tolist(), strict=True):
            one[top : (top + bottom) // 2, left:right] = 1
        masks.append(mask)
    keys = ("boxes", "labels", "masks")
    return [dict(zip(keys, values, strict=True)) for values in zip(boxes, labels, masks, strict=True)]


def single_stage_of_torchvision(own: RoIHeads) -> RoIHeads:
    """The same weights in torchvision's form, where every class has a correction of its own."""
    predictor = BoxPredictor(16, CLASSES)
    predictor.cls_score = own.box_predictor.cls_score
    predictor.bbox_pred.weight.data = own.box_predictor.bbox_pred.weight.data.repeat(CLASSES + 1, 1)
    predictor.bbox_pred.bias.data = own.box_predictor.bbox_pred.bias.data.repeat(CLASSES + 1)
    masks = {key: getattr(own, key) for key in ("mask_roi_pool", "mask_head", "mask_predictor")}
    return RoIHeads(
        own.box_roi_pool, own.box_head, predictor, 0.5, 0.5, 512, 0.25, BOX_WEIGHTS[0], 0.05, 0.5, 50, **masks
    )


@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
def test_one_stage_has_the_losses_of_torchvisions_heads(masks: bool) -> None:
    own = stage(0, masks=masks)
    cascade, reference = CascadeRoIHeads([own], [1.0]), single_stage_of_torchvision(own)
    features, boxes, goals = maps(), proposals(), targets()
    torch.manual_seed(3)
    losses = cascade(features, boxes, SIZES, goals)[1]
    torch.manual_seed(3)
    expected = reference(features, boxes, SIZES, goals)[1]
    assert {f"{name}_1" for name in expected} == set(losses)
    for name, value in expected.items():
        torch.testing.assert_close(losses[f"{name}_1"], value)


@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
def test_one_stage_finds_what_torchvisions_heads_find(masks: bool) -> None:
    own = stage(0, masks=masks)
    cascade, reference = CascadeRoIHeads([own], [1.0]).eval(), single_stage_of_torchvision(own).eval()
    features, boxes = maps(), proposals()
    for found, expected in zip(cascade(features, boxes, SIZES)[0], reference(features, boxes, SIZES)[0], strict=True):
        assert set(found) == set(expected)
        assert len(found["scores"]) > 10
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value)


def iou(a: Floats, b: Floats) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (both - width * height)


def encoded(box: Floats, goal: Floats, weights: tuple[float, ...]) -> Floats:
    """The paper's equation 2: how far a box is from its object, in its own size."""
    width, height = box[2] - box[0], box[3] - box[1]
    goal_width, goal_height = goal[2] - goal[0], goal[3] - goal[1]
    return [
        weights[0] * ((goal[0] + goal[2]) - (box[0] + box[2])) / 2 / width,
        weights[1] * ((goal[1] + goal[3]) - (box[1] + box[3])) / 2 / height,
        weights[2] * math.log(goal_width / width),
        weights[3] * math.log(goal_height / height),
    ]


def decoded(box: Floats, correction: Floats, weights: tuple[float, ...], size: tuple[int, int]) -> Floats:
    width, height = box[2] - box[0], box[3] - box[1]
    x = (box[0] + box[2]) / 2 + correction[0] / weights[0] * width
    y = (box[1] + box[3]) / 2 + correction[1] / weights[1] * height
    width *= math.exp(min(correction[2] / weights[2], math.log(1000 / 16)))
    height *= math.exp(min(correction[3] / weights[3], math.log(1000 / 16)))
    sides = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    return [min(max(side, 0.0), float(size[1 - i % 2])) for i, side in enumerate(sides)]


def predicted(heads: RoIHeads, features: dict[str, Tensor], boxes: list[list[Floats]]) -> tuple[Any, Any]:
    """Probabilities and the one correction of each box, image by image."""
    tensors = [torch.tensor(part, dtype=torch.float64).reshape(-1, 4) for part in boxes]
    x = heads.box_head(heads.box_roi_pool(features, tensors, SIZES))
    scores = heads.box_predictor.cls_score(x).softmax(1)
    corrections = heads.box_predictor.bbox_pred(x)
    counts = [len(part) for part in boxes]
    return [part.tolist() for part in scores.split(counts)], [part.tolist() for part in corrections.split(counts)]


def smooth_l1(x: float, beta: float = 1 / 9) -> float:
    return 0.5 * x * x / beta if abs(x) < beta else abs(x) - 0.5 * beta


def cascade_of_three(**kind: Any) -> CascadeRoIHeads:
    return CascadeRoIHeads([stage(index, **kind) for index in range(3)]).double()


def doubles(features: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.double() for name, x in features.items()}


@pytest.mark.parametrize("empty", [False, True], ids=["objects", "one empty image"])
def test_losses_of_three_stages_equal_a_loop_over_single_boxes(empty: bool) -> None:
    cascade = cascade_of_three(
        sampled_regions=4096
    )  # a quarter of it is more than there are: nothing is left to chance
    features, given, goals = doubles(maps()), [box.double() for box in proposals()], targets(empty=empty)
    losses = cascade(features, given, SIZES, goals)[1]

    boxes = [box.tolist() + goal["boxes"].tolist() for box, goal in zip(given, goals, strict=True)]
    objects_found = []
    for number, (heads, threshold) in enumerate(zip(cascade.stages, IOUS, strict=True), start=1):
        weights = BOX_WEIGHTS[number - 1]
        scores, corrections = predicted(heads, features, boxes)
        entropy, regression, count, found, refined = 0.0, 0.0, 0, 0, []
        for image, (height_width, goal) in enumerate(zip(SIZES, goals, strict=True)):
            row = []
            for box, score, correction in zip(boxes[image], scores[image], corrections[image], strict=True):
                overlaps = [iou(box, own) for own in goal["boxes"].tolist()]
                best = max(range(len(overlaps)), key=overlaps.__getitem__) if overlaps else -1
                label = int(goal["labels"][best]) if overlaps and overlaps[best] >= threshold else 0
                entropy -= math.log(score[label])
                count += 1
                if label:
                    found += 1
                    wanted = encoded(box, goal["boxes"][best].tolist(), weights)
                    regression += sum(smooth_l1(a - b) for a, b in zip(correction, wanted, strict=True))
                row.append(decoded(box, correction, weights, height_width))
            refined.append(row)
        weight = LOSS_WEIGHTS[number - 1]
        assert float(losses[f"loss_classifier_{number}"].detach()) == pytest.approx(weight * entropy / count, rel=1e-6)
        assert float(losses[f"loss_box_reg_{number}"].detach()) == pytest.approx(weight * regression / count, rel=1e-5)
        objects_found.append(found)
        boxes = refined
    assert objects_found[0] > 5  # the loop has seen objects, and a stricter or moved match changes their number
    assert len(set(objects_found)) > 1


def test_detections_of_three_stages_equal_a_loop_over_single_boxes() -> None:
    cascade = cascade_of_three().eval()
    features, given = doubles(maps()), [box.double() for box in proposals()]
    found = cascade(features, given, SIZES)[0]

    boxes, scores = [box.tolist() for box in given], []
    for heads, weights in zip(cascade.stages, BOX_WEIGHTS, strict=True):
        score, corrections = predicted(heads, features, boxes)
        scores.append(score)
        boxes = [
            [decoded(box, correction, weights, size) for box, correction in zip(*parts, strict=True)]
            for *parts, size in zip(boxes, corrections, SIZES, strict=True)
        ]
    for image, one in enumerate(found):
        expected = []
        for label in range(1, CLASSES + 1):
            mean = [sum(parts) / 3 for parts in zip(*([row[label] for row in s[image]] for s in scores), strict=True)]
            kept = [
                (score, box)
                for score, box in zip(mean, boxes[image], strict=True)
                if score > 0.05 and min(box[2] - box[0], box[3] - box[1]) >= 0.01
            ]
            if kept:
                values = torch.tensor([score for score, _ in kept]), torch.tensor([box for _, box in kept])
                expected += [(*kept[index], label) for index in nms(values[1], values[0], 0.5).tolist()]
        expected.sort(key=lambda item: -item[0])
        assert len(expected) > 10
        torch.testing.assert_close(one["scores"], torch.tensor([s for s, _, _ in expected], dtype=torch.float64))
        torch.testing.assert_close(one["boxes"], torch.tensor([b for _, b, _ in expected], dtype=torch.float64))
        assert one["labels"].tolist() == [label for _, _, label in expected]


def test_masks_are_the_mean_of_the_stages_on_the_final_boxes() -> None:
    cascade = cascade_of_three(masks=True).eval()
    features, given = doubles(maps()), [box.double() for box in proposals()]
    found = cascade(features, given, SIZES)[0]
    boxes, labels = [one["boxes"] for one in found], torch.cat([one["labels"] for one in found])
    drawn = [
        heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, boxes, SIZES))) for heads in cascade.stages
    ]
    masks = torch.cat([one["masks"] for one in found])[:, 0]
    assert len(masks) > 20
    for row, (mask, label) in enumerate(zip(masks, labels.tolist(), strict=True)):
        torch.testing.assert_close(mask, sum(logits[row, label].sigmoid() for logits in drawn) / 3)


def test_mask_losses_count_each_stage_by_its_weight() -> None:
    cascade = cascade_of_three(masks=True)
    features, given, goals = doubles(maps()), [box.double() for box in proposals()], targets()
    torch.manual_seed(5)
    weighted = cascade(features, given, SIZES, goals)[1]
    cascade.loss_weights = (1.0, 1.0, 1.0)
    torch.manual_seed(5)
    plain = cascade(features, given, SIZES, goals)[1]
    assert len(plain) == 9
    for name, value in plain.items():
        torch.testing.assert_close(weighted[name], LOSS_WEIGHTS[int(name[-1]) - 1] * value)


def test_refined_boxes_carry_no_gradient_and_stay_in_their_image() -> None:
    heads = stage(0)
    corrections = torch.full((3, 12), 20.0, requires_grad=True)
    boxes = [torch.tensor([[10.0, 10, 30, 30], [1, 2, 60, 40]]), torch.tensor([[5.0, 5, 20, 20]])]
    refined = refined_boxes(heads, corrections, boxes, SIZES)
    assert [len(part) for part in refined] == [2, 1]
    for part, (height, width) in zip(refined, SIZES, strict=True):
        assert not part.requires_grad
        assert float(part.min()) >= 0
        assert float(part[:, 2].max()) <= width
        assert float(part[:, 3].max()) <= height


@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
def test_images_without_objects_or_proposals_leave_finite_losses(masks: bool) -> None:
    cascade = CascadeRoIHeads([stage(index, masks=masks) for index in range(3)])
    goals = [{key: value[:0] for key, value in one.items()} for one in targets()]
    given = [proposals()[0], torch.zeros(0, 4)]
    losses = cascade(maps(), given, SIZES, goals)[1]
    sum(losses.values()).backward()
    assert all(bool(loss.isfinite()) for loss in losses.values())
    assert all(float(loss.detach()) == 0 for name, loss in losses.items() if "classifier" not in name)


def test_a_detector_has_the_papers_three_stages() -> None:
    heads = cascade_rcnn(arguments(), CLASSES).roi_heads
    assert isinstance(heads, CascadeRoIHeads)
    matchers = [one.proposal_matcher for one in heads.stages]
    assert [(m.high_threshold, m.low_threshold) for m in matchers] == [(iou, iou) for iou in IOUS]
    assert [one.box_coder.weights for one in heads.stages] == list(BOX_WEIGHTS)
    assert heads.loss_weights == LOSS_WEIGHTS
    assert all(one.box_predictor.bbox_pred.out_features == 4 for one in heads.stages)
    assert len({id(parameter) for parameter in heads.parameters()}) == 3 * 8  # no stage shares a weight


def test_stages_and_loss_weights_must_be_as_many() -> None:
    with pytest.raises(ConfigError, match="1 stages and 3 loss weights"):
        CascadeRoIHeads([stage(0)])
    with pytest.raises(ConfigError, match="0 stages"):
        CascadeRoIHeads([], [])


def test_labels_of_a_cascade_start_at_zero_outside() -> None:
    small = {**SMALL, "proposals": 20, "train_proposals": 20, "score_threshold": 0.0}
    detector = Detector("test_resnet", "cascade_rcnn", 1, preprocess=DensePreprocess(), head_arguments=small).eval()
    (found,) = detector([torch.rand(3, 64, 64)])
    assert len(found) > 0
    assert set(found.labels.tolist()) == {0}
