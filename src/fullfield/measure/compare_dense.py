"""Backbones beside one another under the same head: parameters, MACs, latency and peak memory of the whole model.

Everything is of one image in inference. MACs are counted on the meta device, of an image whose sides are rounded up to
multiples of 32, as the models pad it. A two-stage detector is counted with as many regions as its settings let through
(`proposals` in each box head, `detections` in each mask head), as mmdetection counts. What is timed is what is counted;
left out is what depends on what is found and costs hardly a product: choosing boxes, and pooling regions from the maps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fullfield.data.dense import DensePreprocess
from fullfield.errors import ConfigError, FullfieldError, nearest
from fullfield.measure.compare_result import USUAL, Budget, NotMeasured
from fullfield.measure.compare_speed import ToTime, fastest_rows
from fullfield.measure.cost import Cost
from fullfield.measure.dense_comparison import DenseCompared, DenseComparison, DenseCost, Size
from fullfield.measure.environment import environment
from fullfield.measure.runners import reason_of
from fullfield.measure.speed import SpeedRow
from fullfield.models.flops import count_flops
from fullfield.tasks.dense_file import build_dense
from fullfield.tasks.detection.detector import HEADS as DETECTION_HEADS
from fullfield.tasks.detection.detector import Detector
from fullfield.tasks.detection.resize import padded_size
from fullfield.tasks.segmentation.heads import HEADS as SEGMENTATION_HEADS
from fullfield.tasks.source import pick_device

__all__ = ["DENSE_TASKS", "SIZES", "compare_dense"]

DENSE_TASKS: Mapping[str, tuple[str, int]] = {"segment": ("upernet", 150), "detect": ("mask_rcnn", 80)}
"""Task -> usual head and number of classes: those of ADE20K and COCO."""
SIZES: tuple[Size, ...] = ((512, 512), (800, 1333))
"""Height and width of the images, pixels."""
COUNTING = 0.1  # share of the progress bar

Report = Callable[[str, float], None]


class _Regions(nn.Module):
    """The layers of a two-stage detector, with as many regions of zeros as its settings let through."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.backbone, self.pyramid, self.head = detector.backbone, detector.pyramid, detector.head
        self.proposals = int(detector.head_arguments["proposals"])
        self.detections = int(detector.head_arguments["detections"])

    def forward(self, images: Tensor) -> None:
        maps = self.pyramid(self.backbone(images))
        self.head.rpn.head(list(maps.values()))
        heads = self.head.roi_heads
        width = maps["0"].shape[1]
        for stage in getattr(heads, "stages", [heads]):
            for many, pool, layers in (
                (self.proposals, stage.box_roi_pool, (stage.box_head, stage.box_predictor)),
                (self.detections, stage.mask_roi_pool, (stage.mask_head, stage.mask_predictor)),
            ):
                if layers[0] is not None:
                    first, last = layers
                    last(first(images.new_zeros(many, width, *pool.output_size)))


class _Maps(nn.Module):
    """The layers of a one-stage detector."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.backbone, self.pyramid, self.dense = detector.backbone, detector.pyramid, detector.head.dense

    def forward(self, images: Tensor) -> None:
        self.dense(list(self.pyramid(self.backbone(images)).values()))


def compare_dense(
    models: Sequence[str],
    task: str,
    *,
    head: str | None = None,
    head_arguments: Mapping[str, Any] | None = None,
    num_classes: int | None = None,
    sizes: Sequence[Size] = SIZES,
    timed: bool = True,
    budget: Budget = USUAL,
    device: str = "auto",
    seed: int = 0,
    command: str = "",
    on_progress: Report | None = None,
) -> DenseComparison:
    """Measure backbones under one head (`fullfield compare MODEL... --task segment`).

    Args:
        models: Registered names.
        task: "segment" or "detect".
        head: Of the task; None for `DENSE_TASKS`'.
        head_arguments: Of the head, such as {"channels": 512}.
        num_classes: None for `DENSE_TASKS`'.
        sizes: (height, width) of the images, pixels; counted at all, timed at the first.
        timed: Whether to time and to measure memory.
        budget: Of it the seconds and rounds of timing.
        device: "auto", "cpu", "cuda", ...
        seed: Of random weights, which change no figure.
        command: The shell command that repeats the comparison, for the page.
        on_progress: Told what is being done and the share done, 0 to 1.

    Returns:
        The figures; a model that can't be built or run is in `not_measured` with the reason.

    Raises:
        ConfigError: An argument is impossible, or a model is named twice.
        ModelNotFoundError: No model has that name.
        MissingExtraError: The head's library is not installed.
    """
    head, classes = _checked(models, task, head, num_classes, sizes)
    where = str(pick_device(device))
    report = on_progress or (lambda _text, _share: None)
    metadata = {
        "head": head,
        "head_arguments": dict(head_arguments or {}),
        "classes": range(classes),
        "preprocess": DensePreprocess().to_dict(),
    }
    missing: list[NotMeasured] = []
    counted: dict[str, tuple[DenseCost, ...]] = {}
    for number, name in enumerate(models):
        report(f"{name}: counting", COUNTING * number / len(models))
        try:
            counted[name] = _count(task, name, metadata, sizes)
        except FullfieldError:
            raise
        except Exception as error:  # of any library's net
            missing.append(NotMeasured(name, "building", reason_of(error)))
    rows: dict[str, SpeedRow] = {}
    if timed:
        height, width = padded_size(*sizes[0])
        ready = {}
        for name, costs in counted.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                whole = _whole(build_dense(task, name, {}, metadata))
            first = costs[0]
            ready[name] = ToTime(whole, Cost(name, first.params, first.macs, 2 * first.macs, (3, height, width)))
        rows = fastest_rows(
            ready,
            batch=1,
            seconds=budget.timing_seconds,
            min_rounds=budget.min_rounds,
            device=where,
            on_failure=lambda label, error: missing.append(NotMeasured(label, "speed", reason_of(error))),
            on_progress=lambda text, share: report(text, COUNTING + (1 - COUNTING) * share),
        )
    found = tuple(DenseCompared(name, costs, rows.get(name)) for name, costs in counted.items())
    arguments = dict(head_arguments or {})
    return DenseComparison(task, head, arguments, classes, found, tuple(missing), environment(where), command)


def _checked(
    models: Sequence[str], task: str, head: str | None, num_classes: int | None, sizes: Sequence[Size]
) -> tuple[str, int]:
    """Return head and number of classes."""
    if task not in DENSE_TASKS:
        raise ConfigError(
            f"there is no task {task!r} to compare; tasks: {', '.join(DENSE_TASKS)}{nearest(task, DENSE_TASKS)}"
        )
    heads = SEGMENTATION_HEADS if task == "segment" else DETECTION_HEADS
    usual, classes = DENSE_TASKS[task]
    head = head or usual
    if head not in heads:
        raise ConfigError(
            f"there is no head {head!r} of the task {task}; heads: {', '.join(heads)}{nearest(head, heads)}"
        )
    if not models:
        raise ConfigError(f"name at least one model, as in `fullfield compare racnn_tiny convnext_tiny --task {task}`")
    twice = sorted({name for name in models if list(models).count(name) > 1})
    if twice:
        raise ConfigError(f"{', '.join(twice)} is named twice; name each model once")
    if not sizes or any(min(size) < 1 for size in sizes):
        raise ConfigError(f"sizes are {list(sizes)}; give at least one height and width of 1 pixel or more")
    return head, classes if num_classes is None else num_classes


def _count(task: str, name: str, metadata: Mapping[str, Any], sizes: Sequence[Size]) -> tuple[DenseCost, ...]:
    """Return the counts of one model at each size."""
    try:
        with torch.device("meta"):
            model: Any = build_dense(task, name, {}, metadata)
    except RuntimeError:  # a few of timm's can't be built without memory
        model = build_dense(task, name, {}, metadata)
    model.eval()
    whole = _whole(model)
    own = sum(p.numel() for p in model.backbone.parameters())
    params = sum(p.numel() for p in model.parameters())
    found = []
    for size in sizes:
        image = (3, *padded_size(*size))
        backbone, everything = (count_flops(part, image) // 2 for part in (model.backbone, whole))
        found.append(DenseCost(size, own, params, backbone, everything))
    return tuple(found)


def _whole(model: nn.Module) -> nn.Module:
    """Return what is counted and timed, (1, C, H, W) -> anything."""
    if not isinstance(model, Detector):
        return model.eval()
    return (_Regions(model) if hasattr(model.head, "roi_heads") else _Maps(model)).eval()
