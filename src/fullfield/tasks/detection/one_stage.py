"""RetinaNet (Lin et al., 2017) and FCOS (Tian et al., 2019) on the maps of a pyramid.

Matching, losses and decoding are torchvision's; what is replaced is its frame around them, which resizes images and
owns a backbone. Labels are positions in the classes: these heads have no background class.
"""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.misc import Conv2dNormActivation

from fullfield.tasks.detection.arguments import FCOSArguments, RetinaNetArguments
from fullfield.tasks.detection.pyramid import StridedAnchors, full_precision

__all__ = ["FCOS", "STRIDES", "RetinaNet"]

STRIDES = (8, 16, 32, 64, 128)
"""Of the maps that both look at."""

Found = list[dict[str, Tensor]]


class RetinaNet(detection.RetinaNet):
    """RetinaNet without a backbone.

    Classes start at a probability of 0.01 (the paper's prior), so that the many empty places do not drown the loss.

    Args:
        arguments: Its settings.
        num_classes: K.
    """

    def __init__(self, arguments: RetinaNetArguments, num_classes: int) -> None:
        width = arguments.fpn_channels
        anchors = StridedAnchors(arguments.anchor_sizes, arguments.aspect_ratios, STRIDES)
        head = RetinaNetHead(width, anchors.num_anchors_per_location()[0], num_classes)
        for part in (head.classification_head, head.regression_head):
            part.conv = _tower(width, arguments.convs, arguments.norm)
        super().__init__(
            SimpleNamespace(out_channels=width),
            num_classes,
            anchor_generator=anchors,
            head=head,
            score_thresh=arguments.score_threshold,
            nms_thresh=arguments.nms_threshold,
            detections_per_img=arguments.detections,
            topk_candidates=arguments.candidates,
        )
        del self.backbone, self.transform

    @property
    def dense(self) -> nn.Module:
        """What is convolved over whole maps."""
        return self.head  # type: ignore[no-any-return]

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: Found | None = None
    ) -> tuple[Found, dict[str, Tensor]]:
        """Return detections (none in training) and losses (none in eval).

        Args:
            images: Of which the maps are.
            features: Maps (B, C, H, W) by name, finest first.
            targets: boxes (N, 4) and labels (N,) of each image; needed in training.

        Returns:
            boxes, scores and labels of each image; and the losses classification and bbox_regression.
        """
        maps = list(features.values())
        outputs = {key: full_precision(x) for key, x in self.head(maps).items()}
        anchors = self.anchor_generator(images, maps)
        if self.training:
            return [], self.compute_loss(targets, outputs, anchors)
        counts = _places(maps, self.anchor_generator)
        split = {key: list(x.split(counts, 1)) for key, x in outputs.items()}
        per_level = [list(one.split(counts)) for one in anchors]
        return self.postprocess_detections(split, per_level, images.image_sizes), {}


class FCOS(detection.FCOS):
    """FCOS without a backbone.

    Args:
        arguments: Its settings.
        num_classes: K.
    """

    def __init__(self, arguments: FCOSArguments, num_classes: int) -> None:
        width = arguments.fpn_channels
        anchors = StridedAnchors([(stride,) for stride in STRIDES], (1.0,), STRIDES)  # places, not boxes
        norm = group_norm if arguments.norm == "group" else nn.Identity
        head = FCOSHead(width, 1, num_classes, num_convs=0)
        head.classification_head = FCOSClassificationHead(width, 1, num_classes, arguments.convs, norm_layer=norm)
        head.regression_head = FCOSRegressionHead(width, 1, arguments.convs, norm_layer=norm)
        super().__init__(
            SimpleNamespace(out_channels=width),
            num_classes,
            anchor_generator=anchors,
            head=head,
            center_sampling_radius=arguments.centre_radius,
            score_thresh=arguments.score_threshold,
            nms_thresh=arguments.nms_threshold,
            detections_per_img=arguments.detections,
            topk_candidates=arguments.candidates,
        )
        del self.backbone, self.transform

    @property
    def dense(self) -> nn.Module:
        """What is convolved over whole maps."""
        return self.head  # type: ignore[no-any-return]

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: Found | None = None
    ) -> tuple[Found, dict[str, Tensor]]:
        """Return detections (none in training) and losses (none in eval).

        Args:
            images: Of which the maps are.
            features: Maps (B, C, H, W) by name, finest first.
            targets: boxes (N, 4) and labels (N,) of each image; needed in training.

        Returns:
            boxes, scores and labels of each image; and the losses classification, bbox_regression and bbox_ctrness.
        """
        maps = list(features.values())
        outputs = {key: full_precision(x) for key, x in self.head(maps).items()}
        anchors = self.anchor_generator(images, maps)
        counts = _places(maps, self.anchor_generator)
        if self.training:
            return [], self.compute_loss(targets, outputs, anchors, counts)
        split = {key: list(x.split(counts, 1)) for key, x in outputs.items()}
        per_level = [list(one.split(counts)) for one in anchors]
        return self.postprocess_detections(split, per_level, images.image_sizes), {}


def group_norm(width: int) -> nn.GroupNorm:
    """Return GroupNorm of at most 32 groups, of 8 channels or more each where there are as many.

    These are torchvision's 32 at the usual width of 256. A group of few channels has almost nothing to normalise on
    the coarsest maps, which may be one pixel.
    """
    return nn.GroupNorm(max(g for g in range(1, 33) if width % g == 0 and (g == 1 or width // g >= 8)), width)


def _places(maps: list[Tensor], anchors: StridedAnchors) -> list[int]:
    """Return the number of predictions of each map."""
    return [x.shape[-2] * x.shape[-1] * each for x, each in zip(maps, anchors.num_anchors_per_location(), strict=True)]


def _tower(width: int, convs: int, norm: str) -> nn.Sequential:
    """Return 3x3 convolutions with ReLU, started as RetinaNet's (normal, 0.01); torchvision's own are always four."""
    layer = group_norm if norm == "group" else None
    tower = nn.Sequential(*[Conv2dNormActivation(width, width, norm_layer=layer) for _ in range(convs)])
    for module in tower.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return tower
