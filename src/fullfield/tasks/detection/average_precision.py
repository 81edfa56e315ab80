"""The figures of detection: COCO's average precision of boxes and of masks, as a whole, by size and by class.

AP is the mean over IoU thresholds 0.50:0.05:0.95 of the area under the interpolated precision-recall curve, with at
most 100 objects an image and class (Lin et al. 2014; cocodataset.org/#detection-eval). faster-coco-eval computes it,
and agrees with pycocotools. Sizes are by area in pixels: small up to 32², medium up to 96², large above.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fullfield.data.detection.objects import DetectionSample
from fullfield.data.detection.outlines import mask_to_rle, outline_to_rle
from fullfield.errors import ConfigError, DataError, MissingExtraError
from fullfield.tasks.detection.detections import Detections
from fullfield.tasks.task import Metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["APFigures", "DetectionMetrics", "DetectionResult"]


@dataclass(frozen=True)
class APFigures:
    """Average precision of boxes or of masks, 0 to 1; None where there is no such object to find.

    Attributes:
        ap: Mean over the IoU thresholds 0.50:0.05:0.95 and over the classes that have objects.
        ap50: At IoU 0.50.
        ap75: At IoU 0.75.
        ap_small: `ap` of objects of at most 32² pixels.
        ap_medium: Of more than that and at most 96².
        ap_large: Of more than 96².
        ar100: Mean of the recall at the same thresholds with at most 100 objects an image and class.
        per_class: `ap` of each class; NaN where a class has no object.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar100: float | None
    per_class: tuple[float, ...]

    def scalars(self) -> dict[str, float]:
        """Return the figures that there are, by name; `per_class` is not among them."""
        names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class DetectionResult:
    """Figures over one pass of a data set.

    Attributes:
        images: How many were counted.
        box: Average precision of the boxes.
        mask: Of the masks; None where boxes alone were evaluated.
    """

    images: int
    box: APFigures
    mask: APFigures | None = None

    @property
    def score(self) -> float:
        """AP of the masks if they were evaluated, else of the boxes; 0 where there is nothing to find."""
        return (self.mask or self.box).ap or 0.0

    def scalars(self) -> dict[str, float]:
        """Return the single numbers by name: images, ap, ap50, ..., and mask_ap, mask_ap50, ... with masks."""
        masks = {} if self.mask is None else {f"mask_{name}": v for name, v in self.mask.scalars().items()}
        return {"images": float(self.images), **self.box.scalars(), **masks}


@dataclass(frozen=True, eq=False)
class _Found:
    """What was found in an image, in little memory: masks are run lengths."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: tuple[Mapping[str, Any], ...] | None


_Key = tuple[int, str]  # image id and path; the path tells images of two data sets apart


class DetectionMetrics(Metrics):
    """Accumulator of a `DetectionResult`.

    An image that is given twice, as a sampler may do that fills up the last round of its processes, counts once.

    Args:
        classes: Names; a label is a position in here.
        masks: Whether masks are evaluated beside boxes.
        synced: Whether `compute` is over all processes, which must then all call it; else over this one alone.

    Raises:
        MissingExtraError: faster-coco-eval is not installed.
    """

    def __init__(self, classes: Sequence[str], *, masks: bool = False, synced: bool = False) -> None:
        super().__init__()
        _evaluator()
        self.classes = tuple(classes)
        self.masks = masks
        self.synced = synced
        self._counted: dict[_Key, tuple[DetectionSample, _Found]] = {}

    @torch.no_grad()
    def update(self, samples: Sequence[DetectionSample], detections: Sequence[Detections]) -> None:
        """Count some images.

        A box with a value that is not finite finds nothing and counts as wrong, as does a score that is not finite
        with the lowest certainty.

        Args:
            samples: The images and what is in them.
            detections: What was found in each, in pixels of the original image.

        Raises:
            ConfigError: The numbers of samples and detections differ, a label is not one of the classes, or masks
                are missing or of another size than the image.
            DataError: Masks are evaluated and an image has objects without outlines.
        """
        if len(samples) != len(detections):
            raise ConfigError(f"there are {len(samples)} images and detections of {len(detections)}; give one for each")
        for sample, found in zip(samples, detections, strict=True):
            if self.masks and sample.objects.masks is None and len(sample.objects):
                raise DataError(
                    f"{sample.path}: has {len(sample.objects)} objects without outlines, so that masks cannot be"
                    " evaluated; evaluate boxes, or add the outlines."
                )
            key = (sample.image_id, str(sample.path))
            if key not in self._counted:
                self._counted[key] = (sample, self._compact(sample, found))

    def compute(self) -> DetectionResult:
        """Return the figures over all images since the last `reset`."""
        counted = self._gathered()
        # COCO's order: where scores are equal, the image with the lower id comes first
        images = [counted[key] for key in sorted(counted)]
        document = {
            "images": [{"id": i, "height": s.height, "width": s.width} for i, (s, _) in enumerate(images, 1)],
            "categories": [{"id": label, "name": name} for label, name in enumerate(self.classes, 1)],
        }
        box = _average_precision(document, _true_boxes(images), _found_boxes(images), "bbox")
        if not self.masks:
            return DetectionResult(len(images), box)
        mask = _average_precision(document, _true_masks(images), _found_masks(images), "segm")
        return DetectionResult(len(images), box, mask)

    def reset(self) -> None:
        """Start over."""
        self._counted.clear()

    def _compact(self, sample: DetectionSample, found: Detections) -> _Found:
        labels = found.labels.cpu().numpy().astype(np.int64)
        foreign = labels[(labels < 0) | (labels >= len(self.classes))]
        if len(foreign):
            raise ConfigError(
                f"{sample.path}: label {foreign[0]} was predicted; there are {len(self.classes)} classes, numbered"
                " from 0. Give the metrics the classes of the model."
            )
        masks = None
        if self.masks:
            if found.masks is None and len(labels):
                raise ConfigError(
                    f"{sample.path}: the model found boxes without masks; evaluate without masks, or use a head that"
                    " gives them, such as mask_rcnn."
                )
            outlines = [] if found.masks is None else list(found.masks.cpu().numpy())
            for outline in outlines[:1]:
                if outline.shape != (sample.height, sample.width):
                    raise ConfigError(
                        f"{sample.path}: the masks have {outline.shape[0]} × {outline.shape[1]} pixels and the image"
                        f" {sample.height} × {sample.width}; give masks in the pixels of the original image."
                    )
            masks = tuple(mask_to_rle(outline) for outline in outlines)
        boxes = found.boxes.float().cpu().numpy().reshape(-1, 4).copy()
        boxes[~np.isfinite(boxes).all(axis=1)] = 0  # an empty box overlaps nothing
        scores = np.nan_to_num(found.scores.float().cpu().numpy(), nan=0.0, posinf=0.0, neginf=0.0)
        return _Found(boxes, scores, labels, masks)

    def _gathered(self) -> dict[_Key, tuple[DetectionSample, _Found]]:
        distributed = torch.distributed
        if not (self.synced and distributed.is_available() and distributed.is_initialized()):
            return self._counted
        parts: list[dict[_Key, tuple[DetectionSample, _Found]]] = [{}] * distributed.get_world_size()
        distributed.all_gather_object(parts, self._counted)
        together: dict[_Key, tuple[DetectionSample, _Found]] = {}
        for part in reversed(parts):  # of an image counted by two processes, the first one's detections stay
            together |= part
        return together


_Images = Sequence[tuple[DetectionSample, _Found]]


def _true_boxes(images: _Images) -> list[dict[str, Any]]:
    return [
        {"image_id": number, "category_id": label + 1, "bbox": _xywh(box), "area": area, "iscrowd": int(crowd)}
        for number, (sample, _) in enumerate(images, 1)
        for box, label, area, crowd in zip(
            sample.objects.boxes.astype(float).tolist(),
            sample.objects.labels.tolist(),
            sample.objects.areas.astype(float).tolist(),
            sample.objects.crowd.tolist(),
            strict=True,
        )
    ]


def _found_boxes(images: _Images) -> list[dict[str, Any]]:
    found = []
    for number, (_, one) in enumerate(images, 1):
        for box, label, score in zip(
            one.boxes.astype(float).tolist(), one.labels.tolist(), one.scores.astype(float).tolist(), strict=True
        ):
            bbox = _xywh(box)
            area = bbox[2] * bbox[3]
            found.append(
                {"image_id": number, "category_id": label + 1, "bbox": bbox, "area": area, "iscrowd": 0, "score": score}
            )
    return found


def _true_masks(images: _Images) -> list[dict[str, Any]]:
    outlines = [
        outline_to_rle(outline, sample.height, sample.width)
        for sample, _ in images
        for outline in sample.objects.masks or ()
    ]
    return [{**true, "segmentation": outline} for true, outline in zip(_true_boxes(images), outlines, strict=True)]


def _found_masks(images: _Images) -> list[dict[str, Any]]:
    from faster_coco_eval.core.mask import area

    masks = [dict(mask) for _, one in images for mask in one.masks or ()]
    # the size of a mask is its own area, not its box's
    return [
        {**found, "segmentation": mask, "area": float(area(mask))}
        for found, mask in zip(_found_boxes(images), masks, strict=True)
    ]


def _average_precision(
    document: Mapping[str, Any], true: list[dict[str, Any]], found: list[dict[str, Any]], kind: str
) -> APFigures:
    """Evaluate the annotations `found` against `true`; `document` has COCO's images and categories."""
    coco, evaluator = _evaluator()
    for listed in (true, found):
        for number, annotation in enumerate(listed, 1):  # 0 would mean "unmatched"
            annotation["id"] = number
    evaluation = evaluator(
        coco({**document, "annotations": true}, print_function=_quiet),
        coco({**document, "annotations": found}, print_function=_quiet),
        iouType=kind,
        print_function=_quiet,
    )
    if not true:  # nothing to find: there is no curve
        return APFigures(None, None, None, None, None, None, None, (float("nan"),) * len(document["categories"]))
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, :, -1]  # thresholds, recalls, classes, sizes
    per_class = [_mean(precision[:, :, label, 0]) for label in range(len(document["categories"]))]
    return APFigures(
        _mean(precision[:, :, :, 0]),
        _mean(precision[0, :, :, 0]),
        _mean(precision[5, :, :, 0]),
        _mean(precision[:, :, :, 1]),
        _mean(precision[:, :, :, 2]),
        _mean(precision[:, :, :, 3]),
        _mean(evaluation.eval["recall"][:, :, 0, -1]),
        tuple(float("nan") if ap is None else ap for ap in per_class),
    )


def _mean(values: NDArray[np.float64]) -> float | None:
    """Return the mean of what there is; -1 stands for classes and sizes without an object."""
    there = values[values > -1]
    return float(there.mean()) if there.size else None


def _xywh(box: Sequence[float]) -> list[float]:
    left, top, right, bottom = box
    return [left, top, right - left, bottom - top]


def _quiet(*_: Any) -> None:
    """Take what faster-coco-eval has to say about its progress."""


def _evaluator() -> tuple[Any, Any]:
    try:
        from faster_coco_eval import COCO
        from faster_coco_eval.core.faster_eval_api import COCOeval_faster
    except ImportError as error:
        raise MissingExtraError(
            "evaluating detection needs faster-coco-eval: pip install 'fullfield[detect]'"
        ) from error
    return COCO, COCOeval_faster
