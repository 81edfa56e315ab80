"""The heads by name: settings, maps and how each is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from fullfield.tasks.detection.arguments import (
    FasterRCNNArguments,
    FCOSArguments,
    HeadArguments,
    MaskRCNNArguments,
    RetinaNetArguments,
)
from fullfield.tasks.detection.one_stage import FCOS, RetinaNet
from fullfield.tasks.detection.two_stage import cascade_rcnn, single_rcnn
from fullfield.tasks.features import STRIDES

__all__ = ["HEADS", "HeadKind"]


@dataclass(frozen=True)
class HeadKind:
    """One kind of head.

    Attributes:
        arguments: The class of its settings.
        build: From settings and number of classes to the head.
        strides: Of the maps of the backbone that its pyramid starts from.
        convolved: Whether the pyramid's coarser maps are made by convolutions.
        masks: Whether it draws outlines and needs them in training.
    """

    arguments: type[HeadArguments]
    build: Callable[[Any, int], nn.Module]
    strides: tuple[int, ...] = STRIDES
    convolved: bool = False
    masks: bool = False


HEADS = {
    "faster_rcnn": HeadKind(FasterRCNNArguments, single_rcnn),
    "mask_rcnn": HeadKind(MaskRCNNArguments, single_rcnn, masks=True),
    "cascade_rcnn": HeadKind(FasterRCNNArguments, cascade_rcnn),
    "cascade_mask_rcnn": HeadKind(MaskRCNNArguments, cascade_rcnn, masks=True),
    "retinanet": HeadKind(RetinaNetArguments, RetinaNet, STRIDES[1:], convolved=True),
    "fcos": HeadKind(FCOSArguments, FCOS, STRIDES[1:], convolved=True),
}
