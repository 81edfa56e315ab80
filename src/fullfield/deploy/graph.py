"""A model as it leaves Fullfield: from images with values 0 to 1 to outputs that need no PyTorch to read.

Every format is written from the module made here. It normalises, so that whoever runs a file need not know how; its
branches are fused, because a runtime can't; and a detector's boxes are decoded within it. What depends on how many
objects there are, choosing among the boxes, is left to whoever runs the file (`Description.selection`).
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torchvision.models.detection.image_list import ImageList

from fullfield.deploy.description import Description, Selection
from fullfield.errors import ConfigError, FullfieldError
from fullfield.models.backbone import Backbone
from fullfield.tasks.detection.one_stage import FCOS, STRIDES, RetinaNet
from fullfield.tasks.detection.pyramid import full_precision
from fullfield.tasks.open import OpenedDense
from fullfield.tasks.source import OpenedModel

__all__ = ["ExportGraph", "capture", "example_images", "export_module", "fused", "in_half"]

EXPORTED_HEADS = ("fcos", "retinanet")
# Unequal, so that height and width stay apart; multiples of 32, as dense nets take; and above 128, the coarsest stride,
# because the tracer takes a side of one pixel for a constant.
_EXAMPLE_SIZE = (160, 288)


class ExportGraph(nn.Module):
    """A net with its normalisation, (B, C, H, W) with values 0 to 1 -> what the task gives, see `export_module`.

    Args:
        net: Takes normalised images and returns a tensor or a tuple of them.
        mean: Of each channel, for values from 0 to 1.
        std: Of each channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.net = net
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Normalise, run the net in the precision of its weights, and return float32 at least."""
        x = (images - self.mean) / self.std
        outputs = self.net(x.to(next(self.net.parameters()).dtype))
        return tuple(map(full_precision, outputs)) if isinstance(outputs, tuple) else full_precision(outputs)


class DenseDetector(nn.Module):
    """FCOS or RetinaNet up to the choice of boxes, normalised images (B, C, H, W) -> boxes (B, N, 4), scores (B, N, K).

    N counts the places of all maps times the boxes at each, the finest map first, in torchvision's order: row, column,
    box. Boxes are x1, y1, x2, y2 in pixels of the input and may reach beyond it.

    Args:
        backbone: From images to maps.
        pyramid: From those to the five maps of `STRIDES`.
        head: The head.
    """

    def __init__(self, backbone: nn.Module, pyramid: nn.Module, head: FCOS | RetinaNet) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = pyramid
        self.head: Any = head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes and scores, float32."""
        maps = list(self.pyramid(self.backbone(x)).values())
        predicted = {key: full_precision(y) for key, y in self.head.dense(maps).items()}
        one = ImageList(x, [(0, 0)])  # the anchors of one image are those of all, and come from the maps' sizes
        anchors_N4 = self.head.anchor_generator(one, maps)[0]
        scores = torch.sigmoid(predicted["cls_logits"])
        regression = predicted["bbox_regression"]
        if isinstance(self.head, FCOS):
            scores = torch.sqrt(scores * torch.sigmoid(predicted["bbox_ctrness"]))
            return self.head.box_coder.decode(regression, anchors_N4), scores
        return _corrected(anchors_N4, regression, self.head.box_coder), scores


@dataclass(frozen=True)
class _Part:
    """What differs between the tasks."""

    net: nn.Module
    colours: tuple[tuple[int, int, int], ...] = ()
    size: int | None = None
    selection: Selection | None = None


def export_module(opened: OpenedModel | OpenedDense) -> tuple[ExportGraph, Description]:
    """Return the module that every format is written from, and what it says of itself.

    Args:
        opened: A classifier, a segmenter, or a detector with one of `EXPORTED_HEADS`; it stays as it is.

    Returns:
        A fused copy on the CPU, in float32 and eval mode. It takes images (B, C, H, W), float32, values 0 to 1; dense
        nets want H and W to be multiples of 32. A classifier gives logits (B, K), a segmenter logits (B, K, H, W), a
        detector boxes (B, N, 4) and scores (B, N, K), see `DenseDetector`.
        And the description, with None for every size that is free; nets of one size only have it.

    Raises:
        ConfigError: The head is a two-stage one, or the model has no classes.
    """
    if not opened.classes:
        raise ConfigError(f"{opened.name} has no classes, so nothing to export; open a model with a classifier")
    if isinstance(opened, OpenedDense):
        part = _detector(opened) if opened.task == "detect" else _segmenter(opened)
    else:
        part = _classifier(opened)
    preprocess = opened.preprocess
    module = ExportGraph(part.net, preprocess.mean, preprocess.std).float().cpu().eval().requires_grad_(False)
    return module, Description(
        task=opened.task,
        name=opened.name,
        classes=opened.classes,
        preprocess=preprocess.to_dict(),
        colours=part.colours,
        height=part.size,
        width=part.size,
        trained=opened.trained,
        selection=part.selection,
    )


def in_half(module: ExportGraph) -> ExportGraph:
    """Return a copy whose net has weights and arithmetic in float16; input, normalisation and outputs stay float32.

    Raises:
        ConfigError: A weight is beyond what float16 can hold (65504).
    """
    half = deepcopy(module)
    half.net.half()
    whole = dict(module.net.state_dict())
    for name, value in half.net.state_dict().items():
        if value.is_floating_point() and not bool((value.isfinite() | ~whole[name].isfinite()).all()):
            raise ConfigError(f"{name} has weights beyond float16's range of 65504; export in fp32")
    return half


def fused(model: nn.Module) -> nn.Module:
    """Fold branches and norms in place where the net knows how: our own, and timm's with reparameterised blocks.

    Args:
        model: Any; one that has nothing to fold stays as it is.

    Returns:
        The model, in eval mode. Its outputs stay equal up to rounding, and it can't be trained any more.
    """
    model.eval()
    return model.fuse() if isinstance(model, Backbone) else reparameterize_model(model, inplace=True)


def example_images(description: Description) -> Tensor:
    """Return images that a graph is traced with, random: sizes left free are given here."""
    height, width = description.height or _EXAMPLE_SIZE[0], description.width or _EXAMPLE_SIZE[1]
    channels = int(description.preprocess["channels"])
    return torch.rand(description.batch or 2, channels, height, width, generator=torch.Generator().manual_seed(0))


def capture(module: nn.Module, description: Description) -> ExportedProgram:
    """Trace the module by `torch.export`, with the sizes free that the description leaves free.

    Args:
        module: As `export_module` or `in_half` returned it.
        description: Of it; its batch, height and width decide.

    Raises:
        ConfigError: The net can't be traced so; the message has the first reason and the remedy.
    """
    axes = {0: ("batch", description.batch), 2: ("height", description.height), 3: ("width", description.width)}
    free = {axis: name for axis, (name, size) in axes.items() if size is None}
    shapes = (dict.fromkeys(free, Dim.DYNAMIC),) if free else None
    try:
        with torch.no_grad():
            return torch.export.export(module, (example_images(description),), dynamic_shapes=shapes, strict=False)
    except FullfieldError:
        raise
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        reason = _first_line(error)
        if not free:
            raise ConfigError(f"{description.name} can't be traced for export: {reason}") from error
        raise ConfigError(
            f"{description.name} can't be exported with any {', '.join(free.values())} ({reason}); give one size, such"
            " as `--size 224`"
        ) from error


def _classifier(opened: OpenedModel) -> _Part:
    cfg = getattr(opened.model, "pretrained_cfg", None) or {}
    size = opened.preprocess.image_size if cfg.get("fixed_input_size") else None
    return _Part(fused(deepcopy(opened.model)), size=size)


def _segmenter(opened: OpenedDense) -> _Part:
    net = deepcopy(opened.model)
    net.backbone.model = fused(net.backbone.model)
    net.auxiliary = None
    net.get_buffer("mean").zero_()  # `ExportGraph` normalises, in float32 whatever the net computes in
    net.get_buffer("std").fill_(1)
    return _Part(net, colours=opened.colours)


def _detector(opened: OpenedDense) -> _Part:
    name = opened.model.head_name
    if name not in EXPORTED_HEADS:
        raise ConfigError(
            f"{opened.name} can't be exported: what its head {name} looks at depends on how many regions it proposes,"
            " which the formats can't carry whole. Run it with PyTorch (`fullfield predict` or `fullfield serve` on"
            f" the run folder), or train a head that exports whole: {' or '.join(EXPORTED_HEADS)}"
        )
    net = deepcopy(opened.model)
    net.backbone.model = fused(net.backbone.model)
    head = net.head
    selection = Selection(
        strides=STRIDES,
        boxes_per_place=head.anchor_generator.num_anchors_per_location()[0],
        score_threshold=head.score_thresh,
        candidates=head.topk_candidates,
        nms_threshold=head.nms_thresh,
        detections=head.detections_per_img,
    )
    return _Part(DenseDetector(net.backbone, net.pyramid, head), selection=selection)


def _corrected(anchors_N4: Tensor, regression_BN4: Tensor, coder: Any) -> Tensor:
    """Move and stretch anchors, (B, N, 4); the arithmetic of torchvision's `BoxCoder.decode_single`, batched."""
    low, high = anchors_N4[:, :2], anchors_N4[:, 2:]
    size_N2, centre_N2 = high - low, low + 0.5 * (high - low)
    step_BN4 = regression_BN4 / torch.tensor(coder.weights)
    moved = step_BN4[..., :2] * size_N2 + centre_N2
    half = 0.5 * step_BN4[..., 2:].clamp(max=coder.bbox_xform_clip).exp() * size_N2
    return torch.cat([moved - half, moved + half], dim=-1)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
