"""The heads against torchvision's own detectors, built around the same weights but torchvision's anchors and pooling.

Sizes here divide by every stride, because elsewhere torchvision's anchors lie elsewhere (see `pyramid.py`).
"""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign, box_iou, roi_align

from fullfield.data.dense import DensePreprocess
from fullfield.errors import ConfigError
from fullfield.tasks.detection.detector import HEADS, Detector
from fullfield.tasks.detection.one_stage import group_norm
from fullfield.tasks.detection.pyramid import RegionPool, StridedAnchors

SMALL: dict[str, Any] = {"fpn_channels": 32}
SMALL_RCNN = {**SMALL, "box_features": 32, "proposals": 100, "train_proposals": 100}
ARGUMENTS = {
    "faster_rcnn": SMALL_RCNN,
    "mask_rcnn": {**SMALL_RCNN, "mask_features": 32},
    "retinanet": SMALL,
    "fcos": SMALL,
}
MEAN, STD = (0.4, 0.5, 0.6), (0.3, 0.2, 0.1)
CLASSES = 3


class Trunk(nn.Module):
    """Backbone and pyramid as torchvision wants them."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.body, self.pyramid = detector.backbone, detector.pyramid
        self.out_channels = 32

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict(self.pyramid(self.body(x)))


def built(head: str, **preprocess: int) -> Detector:
    torch.manual_seed(1)
    settings = DensePreprocess(mean=MEAN, std=STD, **preprocess)
    detector = Detector("test_resnet", head, CLASSES, preprocess=settings, head_arguments=ARGUMENTS[head])
    for name, weight in detector.head.named_parameters():  # so that something is found, of every class
        if any(part in name for part in ("cls_score.weight", "cls_logits.weight")):
            nn.init.normal_(weight, std=1.0)
        if head == "retinanet" and "_head.conv" in name and name.endswith("weight"):
            nn.init.normal_(weight, std=0.1)  # the paper's 0.01 leaves nothing of an image behind four layers
        if any(part in name for part in ("bbox_pred.weight", "bbox_reg.weight", "mask_fcn_logits.weight")):
            nn.init.normal_(weight, std=0.1)
    return detector


def torchvisions(detector: Detector, side: int) -> nn.Module:
    head = detector.head
    common: dict[str, Any] = {"min_size": side, "max_size": 4 * side, "image_mean": MEAN, "image_std": STD}
    common["_skip_resize"] = True  # in training only; it would draw random numbers
    ratios = ((0.5, 1.0, 2.0),) * 5
    if detector.head_name == "retinanet":
        return detection.RetinaNet(Trunk(detector), CLASSES, head=head.head, detections_per_img=100, **common)
    if detector.head_name == "fcos":
        return detection.FCOS(Trunk(detector), CLASSES, head=head.head, **common)
    rois = head.roi_heads
    kinds = {"faster_rcnn": detection.FasterRCNN, "mask_rcnn": detection.MaskRCNN}
    masks = {}
    if detector.head_name == "mask_rcnn":
        masks = {
            "mask_roi_pool": MultiScaleRoIAlign(["0", "1", "2", "3"], 14, 2),
            "mask_head": rois.mask_head,
            "mask_predictor": rois.mask_predictor,
        }
    return kinds[detector.head_name](
        Trunk(detector),
        rpn_anchor_generator=AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ratios),
        rpn_head=head.rpn.head,
        **{f"rpn_{when}_nms_top_n_{split}": 100 for when in ("pre", "post") for split in ("train", "test")},
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2),
        box_head=rois.box_head,
        box_predictor=rois.box_predictor,
        **masks,
        **common,
    )


def pictures(*sizes: tuple[int, int]) -> list[Tensor]:
    return [torch.rand(3, *size) for size in sizes]


def target(height: int, width: int, labels: list[int]) -> dict[str, Tensor]:
    corners = torch.rand(len(labels), 2) * torch.tensor([width / 2, height / 2])
    boxes = torch.cat([corners, corners + 20 + torch.rand(len(labels), 2) * 40], 1)
    masks = (torch.rand(len(labels), height, width) > 0.5).to(torch.uint8)
    return {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.int64), "masks": masks}


@pytest.mark.parametrize("head", sorted(ARGUMENTS))
def test_detections_are_those_of_torchvision_with_the_same_weights(head: str) -> None:
    detector = built(head, short_side=128, long_side=512).eval()
    images = pictures((64, 128), (64, 128))  # seen at twice the size
    ours, theirs = detector(images), torchvisions(detector, 128).eval()(images)
    shift = 1 if "rcnn" in head else 0
    for one, reference in zip(ours, theirs, strict=True):
        width_height = reference["boxes"][:, 2:] - reference["boxes"][:, :2]
        kept = (width_height > 0).all(1)  # torchvision's one-stage heads keep boxes that lie outside the image
        assert len(one) == int(kept.sum()) > 10
        torch.testing.assert_close(one.boxes, reference["boxes"][kept], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(one.scores, reference["scores"][kept], rtol=1e-4, atol=1e-5)
        assert torch.equal(one.labels, reference["labels"][kept] - shift)
        assert len(one.labels.unique()) > 1
        if head == "mask_rcnn":
            assert one.masks is not None
            assert bool((one.masks != (reference["masks"][:, 0] > 0.5)).float().mean() < 1e-3)
            assert 0 < one.masks.float().mean() < 1


@pytest.mark.parametrize("head", sorted(ARGUMENTS))
def test_losses_are_those_of_torchvision_with_the_same_weights(head: str) -> None:
    detector = built(head).train()
    images = pictures((128, 128), (128, 128))
    targets = [target(128, 128, [0, 2, 1]), target(128, 128, [])]
    shift = 1 if "rcnn" in head else 0
    theirs = torchvisions(detector, 128).train()
    torch.manual_seed(7)
    ours = detector(images, targets)
    torch.manual_seed(7)
    reference = theirs(images, [{**one, "labels": one["labels"] + shift} for one in targets])
    assert set(ours) == set(reference)
    for name, loss in ours.items():
        torch.testing.assert_close(loss, reference[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("head", "classes", "published"),
    [
        ("faster_rcnn", 90, 41_755_286),
        ("mask_rcnn", 90, 44_401_393),
        ("retinanet", 91, 34_014_999),
        ("fcos", 91, 32_269_600),
    ],
)
def test_resnet50_has_the_parameters_that_torchvision_publishes(head: str, classes: int, published: int) -> None:
    with torch.device("meta"):
        detector = Detector("resnet50", head, classes, preprocess=DensePreprocess())
    norms = [m for m in detector.backbone.modules() if isinstance(m, nn.BatchNorm2d)]  # frozen there, not counted
    frozen = sum(p.numel() for norm in norms for p in norm.parameters())
    assert sum(p.numel() for p in detector.parameters()) - frozen == published


@pytest.mark.parametrize("head", ["retinanet", "fcos"])
def test_one_stage_heads_start_by_calling_everything_background(head: str) -> None:
    detector = Detector("test_resnet", head, 5, preprocess=DensePreprocess(), head_arguments=SMALL)
    bias = detector.head.head.classification_head.cls_logits.bias
    torch.testing.assert_close(bias.sigmoid(), torch.full_like(bias, 0.01))


@pytest.mark.parametrize("head", ["faster_rcnn", "cascade_rcnn"])
def test_box_predictors_start_as_in_fast_rcnn(head: str) -> None:
    arguments = {**SMALL, "box_features": 1000}
    detector = Detector("test_resnet", head, 20, preprocess=DensePreprocess(), head_arguments=arguments)
    heads = detector.head.roi_heads
    for one in heads.stages if head == "cascade_rcnn" else [heads]:
        assert float(one.box_predictor.cls_score.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
        assert float(one.box_predictor.bbox_pred.weight.detach().std()) == pytest.approx(0.001, rel=0.05)
        assert not one.box_predictor.cls_score.bias.any()


@pytest.mark.parametrize("head", ["retinanet", "fcos"])
@pytest.mark.parametrize("norm", ["none", "group"])
def test_towers_have_the_convolutions_and_norms_asked_for(head: str, norm: str) -> None:
    arguments = {"fpn_channels": 24, "convs": 2, "norm": norm}
    detector = Detector("test_resnet", head, 2, preprocess=DensePreprocess(), head_arguments=arguments)
    for part in (detector.head.head.classification_head, detector.head.head.regression_head):
        convs = [layer for layer in part.conv.modules() if isinstance(layer, nn.Conv2d)]
        norms = [layer for layer in part.conv.modules() if isinstance(layer, nn.GroupNorm)]
        assert [conv.out_channels for conv in convs] == [24, 24]
        assert [layer.num_groups for layer in norms] == ([3, 3] if norm == "group" else [])


def test_group_norm_has_torchvisions_32_groups_at_the_usual_width_and_no_narrow_ones_below() -> None:
    assert [group_norm(width).num_groups for width in (256, 512, 64, 24, 12, 7)] == [32, 32, 8, 3, 1, 1]


def test_anchors_lie_at_multiples_of_the_stride_whatever_the_image_size() -> None:
    strides = (4, 8, 16, 32, 64)
    anchors = StridedAnchors([(16,)] * 5, (1.0,), strides)
    height, width = 96, 160  # neither divides by 64
    maps = [torch.zeros(2, 1, -(-height // s), -(-width // s), dtype=torch.bfloat16) for s in strides]
    images = detection.image_list.ImageList(torch.zeros(2, 3, height, width), [(90, 150), (96, 160)])
    first, second = anchors(images, maps)
    expected = [
        [x * s - 8.0, y * s - 8.0, x * s + 8.0, y * s + 8.0]
        for s in strides
        for y in range(-(-height // s))
        for x in range(-(-width // s))
    ]
    assert first.dtype == torch.float32
    assert torch.equal(first, torch.tensor(expected))
    assert torch.equal(first, second)


def test_regions_are_pooled_at_the_stride_of_the_map_in_small_odd_images() -> None:
    pool = RegionPool(7)
    maps = {str(i): torch.rand(1, 2, 64 // s, 64 // s) for i, s in enumerate((4, 8, 16, 32))}
    boxes = torch.tensor([[3.0, 5.0, 30.0, 33.0]])  # small: the finest map
    pooled = pool(maps, [boxes], [(37, 53)])
    reference = roi_align(maps["0"], [boxes], 7, spatial_scale=0.25, sampling_ratio=2)
    torch.testing.assert_close(pooled, reference)


@pytest.mark.parametrize("head", sorted(HEADS))
def test_head_arguments_build_the_same_head_again_after_json(head: str) -> None:
    given = {"fpn_channels": 16, "detections": 7, **({"box_features": 8} if "rcnn" in head else {"convs": 1})}
    detector = Detector("test_resnet", head, 2, preprocess=DensePreprocess(), head_arguments=given)
    stored = json.loads(json.dumps(detector.head_arguments))
    again = Detector("test_resnet", head, 2, preprocess=DensePreprocess(), head_arguments=stored)
    again.load_state_dict(detector.state_dict())
    assert again.head_arguments == detector.head_arguments
    assert stored["detections"] == 7


def test_anchor_sizes_and_ratios_reach_the_anchors() -> None:
    arguments = {**SMALL, "anchor_sizes": [[8, 12], [16, 24], [32, 48], [64, 96], [128, 192]], "aspect_ratios": [1]}
    detector = Detector("test_resnet", "retinanet", 2, preprocess=DensePreprocess(), head_arguments=arguments)
    cells = torch.cat(detector.head.anchor_generator.cell_anchors)
    sides = [8, 12, 16, 24, 32, 48, 64, 96, 128, 192]
    expected = torch.tensor([[-s / 2, -s / 2, s / 2, s / 2] for s in sides])
    assert torch.equal(box_iou(cells, expected).diag(), torch.ones(10))


BAD = [
    ("fcos", {"fpn_chanels": 64}, "'fpn_channels'"),
    ("fcos", {"anchor_sizes": [8] * 5}, "it has fpn_channels"),
    ("retinanet", {"fpn_channels": 0}, "fpn_channels is 0"),
    ("retinanet", {"fpn_channels": True}, "fpn_channels is True"),
    ("retinanet", {"convs": 2.5}, "convs is 2.5"),
    ("retinanet", {"score_threshold": 1.5}, "from 0 to 1"),
    ("retinanet", {"nms_threshold": float("nan")}, "nms_threshold is nan"),
    ("retinanet", {"norm": "batch"}, "norm"),
    ("fcos", {"centre_radius": 0}, "above 0"),
    ("faster_rcnn", {"anchor_sizes": [32, 64]}, "give 5 values"),
    ("faster_rcnn", {"anchor_sizes": [[8, 16], 32, 64, 128, 256]}, "as many numbers"),
    ("faster_rcnn", {"anchor_sizes": "large"}, "give a list"),
    ("faster_rcnn", {"anchor_sizes": [8, 16, 32, 64, -1]}, "is -1"),
    ("faster_rcnn", {"aspect_ratios": []}, "aspect_ratios is \\[\\]"),
    ("faster_rcnn", {"mask_features": 64}, "mask_features"),
]


@pytest.mark.parametrize(("head", "arguments", "says"), BAD, ids=lambda value: str(value)[:40])
def test_an_impossible_head_argument_is_named(head: str, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        HEADS[head].arguments.from_dict(arguments, head)
