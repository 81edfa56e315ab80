"""Cascade R-CNN (Cai and Vasconcelos, 2018): box heads in a row, each on the boxes that the one before has refined.

The stages are torchvision's `RoIHeads`, each with its own IoU from which a box counts as an object and its own scale of
the regression; only what lies between the stages is ours. It follows Detectron2 where implementations differ:
proposals are joined by the ground truth and sampled once, before the first stage; later stages match the refined boxes
of that sample anew and keep them all. At inference each stage scores its own boxes, the boxes of the last stage are
kept and their class probabilities are the mean over stages. Masks follow mmdetection: a mask head a stage in training,
the mean of their probabilities on the final boxes at inference.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference, maskrcnn_loss
from torchvision.ops import clip_boxes_to_image

from fullfield.errors import ConfigError
from fullfield.tasks.detection.pyramid import full_precision

__all__ = ["BOX_WEIGHTS", "LOSS_WEIGHTS", "STAGE_IOUS", "CascadeRoIHeads", "ClassAgnosticPredictor", "refined_boxes"]

STAGE_IOUS = (0.5, 0.6, 0.7)
"""From which a box counts as an object, in each stage."""
BOX_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
"""Of x, y, width and height in the regression's targets, in each stage: corrections shrink as boxes improve."""
LOSS_WEIGHTS = (1.0, 0.5, 0.25)
"""Of each stage's losses."""

Found = list[dict[str, Tensor]]
Sizes = list[tuple[int, int]]


class ClassAgnosticPredictor(nn.Module):
    """Classes and one correction of the box for all of them, (R, features) -> (R, K + 1), (R, 4 (K + 1)).

    The correction is repeated for every class, which is the form that torchvision's loss and decoding take.

    Args:
        features: Width of the box head.
        num_classes: K; class 0 of the output is the background.
    """

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(features, num_classes + 1)
        self.bbox_pred = nn.Linear(features, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and the repeated correction."""
        logits, correction = full_precision(self.cls_score(x)), full_precision(self.bbox_pred(x))
        return logits, correction.repeat(1, logits.shape[1])


def refined_boxes(stage: RoIHeads, corrections: Tensor, boxes: list[Tensor], sizes: Sizes) -> list[Tensor]:
    """Return a stage's boxes after its corrections, clipped to the images and without a gradient.

    Args:
        stage: Whose box coder applies.
        corrections: (R, 4 (K + 1)) of all boxes, alike for all classes.
        boxes: (R_i, 4) of each image, pixels; their sum is R.
        sizes: Height and width of each image, pixels.
    """
    decoded = stage.box_coder.decode(corrections[:, :4].detach(), boxes).reshape(-1, 4)
    decoded = decoded.nan_to_num(0.0)  # the loss of this stage says that something is wrong; pooling would just fail
    parts = decoded.split([len(part) for part in boxes])
    return [clip_boxes_to_image(part, size) for part, size in zip(parts, sizes, strict=True)]


class CascadeRoIHeads(nn.Module):
    """Box heads, and mask heads where they have them, in a row; in torchvision's `RoIHeads`' place.

    Args:
        stages: Each with a class-agnostic predictor. The last one's thresholds hold for the detections.
        loss_weights: Of each stage.

    Raises:
        ConfigError: There is no stage, or not one weight for each.
    """

    def __init__(self, stages: Sequence[RoIHeads], loss_weights: Sequence[float] = LOSS_WEIGHTS) -> None:
        super().__init__()
        if not stages or len(stages) != len(loss_weights):
            raise ConfigError(f"{len(stages)} stages and {len(loss_weights)} loss weights; give one weight a stage")
        self.stages = nn.ModuleList(stages)
        self.loss_weights = tuple(loss_weights)

    def forward(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: Sizes, targets: Found | None = None
    ) -> tuple[Found, dict[str, Tensor]]:
        """Return detections (none in training) and losses (none in eval), as torchvision's `RoIHeads` does.

        Args:
            features: Maps of the pyramid by name.
            proposals: (R_i, 4) of each image, pixels.
            image_shapes: Height and width of each image, pixels.
            targets: boxes, labels from 1 and, of a mask head, masks of each image; needed in training.

        Returns:
            boxes, labels from 1, scores and perhaps masks (N, 1, M, M) of each image; and the losses
            loss_classifier_I, loss_box_reg_I and perhaps loss_mask_I of stage I, from 1, weighted.
        """
        if self.training:
            return [], self._losses(features, proposals, image_shapes, targets or [])
        return self._detections(features, proposals, image_shapes), {}

    def _each(self) -> list[RoIHeads]:
        return list(self.stages)

    def _losses(
        self, features: dict[str, Tensor], boxes: list[Tensor], sizes: Sizes, targets: Found
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for index, (stage, weight) in enumerate(zip(self._each(), self.loss_weights, strict=True)):
            if index == 0:
                boxes, matches, labels, goals = stage.select_training_samples(boxes, targets)
            else:
                matches, labels, goals = _match(stage, boxes, targets)
            logits, corrections = _predict(stage, features, boxes, sizes)
            classes, regression = fastrcnn_loss(logits, corrections, labels, goals)
            number = index + 1
            losses[f"loss_classifier_{number}"] = weight * classes
            losses[f"loss_box_reg_{number}"] = weight * regression
            if stage.has_mask():
                losses[f"loss_mask_{number}"] = weight * _mask_loss(
                    stage, features, boxes, matches, labels, sizes, targets
                )
            boxes = refined_boxes(stage, corrections, boxes, sizes)
        return losses

    def _detections(self, features: dict[str, Tensor], boxes: list[Tensor], sizes: Sizes) -> Found:
        logs = []
        refined = boxes
        for stage in self._each():
            boxes = refined
            logits, corrections = _predict(stage, features, boxes, sizes)
            logs.append(F.log_softmax(logits, -1))
            refined = refined_boxes(stage, corrections, boxes, sizes)
        # torchvision takes the softmax; that of the logarithm of a sum of probabilities is their mean
        last = self._each()[-1]
        mean = torch.stack(logs).logsumexp(0)
        parts = last.postprocess_detections(mean, corrections, boxes, sizes)
        found = [dict(zip(("boxes", "scores", "labels"), part, strict=True)) for part in zip(*parts, strict=True)]
        if last.has_mask():
            self._add_masks(features, found, sizes)
        return found

    def _add_masks(self, features: dict[str, Tensor], found: Found, sizes: Sizes) -> None:
        boxes, labels = [one["boxes"] for one in found], [one["labels"] for one in found]
        drawn = []
        for stage in self._each():
            logits = stage.mask_predictor(stage.mask_head(stage.mask_roi_pool(features, boxes, sizes)))
            drawn.append(maskrcnn_inference(full_precision(logits), labels))
        for one, masks in zip(found, zip(*drawn, strict=True), strict=True):
            one["masks"] = torch.stack(masks).mean(0)


def _predict(stage: RoIHeads, features: dict[str, Tensor], boxes: list[Tensor], sizes: Sizes) -> tuple[Tensor, Tensor]:
    logits, corrections = stage.box_predictor(stage.box_head(stage.box_roi_pool(features, boxes, sizes)))
    return logits, corrections


def _match(stage: RoIHeads, boxes: list[Tensor], targets: Found) -> tuple[list[Tensor], list[Tensor], Sequence[Tensor]]:
    """Return which object each refined box belongs to, its label (0 for none) and the regression's targets."""
    objects = [target["boxes"].to(box.dtype) for target, box in zip(targets, boxes, strict=True)]
    matches, labels = stage.assign_targets_to_proposals(boxes, objects, [target["labels"] for target in targets])
    # an image without objects has labels 0 alone, whose regression does not count; any box will do for it
    goals = [
        own[match] if len(own) else torch.zeros_like(box)
        for own, match, box in zip(objects, matches, boxes, strict=True)
    ]
    return matches, labels, stage.box_coder.encode(goals, boxes)


def _mask_loss(
    stage: RoIHeads,
    features: dict[str, Tensor],
    boxes: list[Tensor],
    matches: list[Tensor],
    labels: list[Tensor],
    sizes: Sizes,
    targets: Found,
) -> Tensor:
    """Return the mean binary cross-entropy of the masks of those boxes that a stage counts as objects."""
    positive = [label > 0 for label in labels]
    kept = [box[keep] for box, keep in zip(boxes, positive, strict=True)]
    logits = stage.mask_predictor(stage.mask_head(stage.mask_roi_pool(features, kept, sizes)))
    loss: Tensor = maskrcnn_loss(
        logits,
        kept,
        [target["masks"] for target in targets],
        [target["labels"] for target in targets],
        [match[keep] for match, keep in zip(matches, positive, strict=True)],
    )
    return loss
