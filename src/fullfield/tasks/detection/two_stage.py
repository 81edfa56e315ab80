"""Faster, Mask and Cascade R-CNN on the maps of a pyramid: regions are proposed, then each is looked at.

The proposal network and the heads of the regions are torchvision's. Labels outside are positions in the classes; within
they are one higher, because 0 is the background.
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from fullfield.tasks.detection.arguments import FasterRCNNArguments, MaskRCNNArguments
from fullfield.tasks.detection.cascade import BOX_WEIGHTS, STAGE_IOUS, CascadeRoIHeads, ClassAgnosticPredictor
from fullfield.tasks.detection.pyramid import RegionPool, StridedAnchors, full_precision

__all__ = ["STRIDES", "TwoStage", "cascade_rcnn", "region_heads", "region_proposals", "single_rcnn"]

STRIDES = (4, 8, 16, 32, 64)
"""Of the maps that regions are proposed from; they are pooled from the first four."""
BOX_SIZE = 7
MASK_SIZE = 14

Found = list[dict[str, Tensor]]


class ProposalHead(RPNHead):
    """torchvision's head of the proposal network, whose predictions are float32 under autocast as well."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return objectness (B, A, H, W) and corrections (B, 4 A, H, W) of each map."""
        objectness, corrections = super().forward(x)
        return [full_precision(one) for one in objectness], [full_precision(one) for one in corrections]


class BoxPredictor(FastRCNNPredictor):
    """torchvision's classes and corrections of boxes, float32 under autocast as well, (R, F) -> (R, K + 1), (R, 4 ...).

    Args:
        features: F.
        num_classes: K; class 0 of the output is the background.
    """

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__(features, num_classes + 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and a correction for each class."""
        logits, corrections = super().forward(x)
        return full_precision(logits), full_precision(corrections)


class TwoStage(nn.Module):
    """A proposal network and what looks at its regions.

    Args:
        rpn: The proposal network.
        roi_heads: torchvision's `RoIHeads` or a cascade of them.
    """

    def __init__(self, rpn: RegionProposalNetwork, roi_heads: RoIHeads | CascadeRoIHeads) -> None:
        super().__init__()
        self.rpn = rpn
        self.roi_heads = roi_heads

    @property
    def dense(self) -> nn.Module:
        """What is convolved over whole maps."""
        return self.rpn.head  # type: ignore[no-any-return]

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: Found | None = None
    ) -> tuple[Found, dict[str, Tensor]]:
        """Return detections (none in training) and losses (none in eval).

        Args:
            images: Of which the maps are.
            features: Maps (B, C, H, W) by name, finest first.
            targets: boxes (N, 4), labels (N,) from 0 and, of a mask head, masks (N, H, W) of each image; needed in
                training.

        Returns:
            boxes, scores, labels from 0 and perhaps masks (N, 1, M, M) of each image; and the losses by name.
        """
        if targets is not None:
            targets = [{**target, "labels": target["labels"] + 1} for target in targets]
        proposals, proposal_losses = self.rpn(images, features, targets)
        found, losses = self.roi_heads(features, proposals, images.image_sizes, targets)
        found = [{**one, "labels": one["labels"] - 1} for one in found]
        return found, {**losses, **proposal_losses}


def region_proposals(arguments: FasterRCNNArguments) -> RegionProposalNetwork:
    """Return a proposal network with the paper's thresholds."""
    anchors = StridedAnchors(arguments.anchor_sizes, arguments.aspect_ratios, STRIDES)
    kept = {"training": arguments.train_proposals, "testing": arguments.proposals}
    return RegionProposalNetwork(
        anchors,
        ProposalHead(arguments.fpn_channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n=kept,
        post_nms_top_n=dict(kept),
        nms_thresh=0.7,
    )


def region_heads(
    arguments: FasterRCNNArguments,
    num_classes: int,
    predictor: BoxPredictor | ClassAgnosticPredictor,
    *,
    iou: float = STAGE_IOUS[0],
    box_weights: tuple[float, float, float, float] = BOX_WEIGHTS[0],
) -> RoIHeads:
    """Return heads of regions: classes and boxes, and masks if the settings are those of a mask head.

    The predictor starts as in Fast R-CNN (Girshick, 2015): normal with 0.01 for classes and 0.001 for boxes.

    Args:
        arguments: The settings.
        num_classes: K, without background.
        predictor: Of classes and corrections.
        iou: From which a box counts as an object.
        box_weights: Of x, y, width and height in the regression's targets.
    """
    for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    masks: dict[str, nn.Module] = {}
    if isinstance(arguments, MaskRCNNArguments):
        width = arguments.mask_features
        masks = {
            "mask_roi_pool": RegionPool(MASK_SIZE),
            "mask_head": MaskRCNNHeads(arguments.fpn_channels, (width,) * 4, 1),
            "mask_predictor": MaskRCNNPredictor(width, width, num_classes + 1),
        }
    return RoIHeads(
        RegionPool(BOX_SIZE),
        TwoMLPHead(arguments.fpn_channels * BOX_SIZE**2, arguments.box_features),
        predictor,
        fg_iou_thresh=iou,
        bg_iou_thresh=iou,
        batch_size_per_image=arguments.sampled_regions,
        positive_fraction=0.25,
        bbox_reg_weights=box_weights,
        score_thresh=arguments.score_threshold,
        nms_thresh=arguments.nms_threshold,
        detections_per_img=arguments.detections,
        **masks,
    )


def single_rcnn(arguments: FasterRCNNArguments, num_classes: int) -> TwoStage:
    """Return Faster R-CNN, or Mask R-CNN if the settings are those of a mask head."""
    heads = region_heads(arguments, num_classes, BoxPredictor(arguments.box_features, num_classes))
    return TwoStage(region_proposals(arguments), heads)


def cascade_rcnn(arguments: FasterRCNNArguments, num_classes: int) -> TwoStage:
    """Return Cascade R-CNN, or Cascade Mask R-CNN if the settings are those of a mask head."""
    stages = [
        region_heads(
            arguments,
            num_classes,
            ClassAgnosticPredictor(arguments.box_features, num_classes),
            iou=iou,
            box_weights=weights,
        )
        for iou, weights in zip(STAGE_IOUS, BOX_WEIGHTS, strict=True)
    ]
    return TwoStage(region_proposals(arguments), CascadeRoIHeads(stages))
