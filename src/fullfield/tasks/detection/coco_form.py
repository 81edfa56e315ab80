"""What a detector found, in COCO's form: the results list that COCO's tools evaluate, and a whole annotation file.

COCO's boxes are [left, top, width, height] in pixels, its masks run lengths, its categories numbered by the data set
(cocodataset.org/#format-results).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fullfield.data.detection.objects import DetectionData
from fullfield.data.detection.outlines import mask_to_rle
from fullfield.errors import ConfigError

if TYPE_CHECKING:
    from fullfield.tasks.detection.answers import DetectionPrediction
    from fullfield.tasks.detection.detections import Detections

__all__ = ["Detection", "category_numbers", "coco_document", "coco_results", "named_objects"]


@dataclass(frozen=True)
class Detection:
    """One object found in an image.

    Attributes:
        name: Its class.
        label: The position of the class among the model's classes.
        score: How certain the model is, 0 to 1; NaN for an object that a person annotated.
        box: (left, top, right, bottom), pixels of the upright image.
        mask: COCO's run lengths {"size": [height, width], "counts": text}; None if the model gives boxes alone.
    """

    name: str
    label: int
    score: float
    box: tuple[float, float, float, float]
    mask: Mapping[str, Any] | None = None

    @property
    def bbox(self) -> list[float]:
        """The box as COCO writes it: left, top, width, height."""
        left, top, right, bottom = self.box
        return [left, top, right - left, bottom - top]


def named_objects(detections: Detections, classes: Sequence[str], *, threshold: float = 0.0) -> tuple[Detection, ...]:
    """Return what was found in an image as single objects, the most certain first.

    Args:
        detections: Of one image. A box or a score that is not finite is no object and is left out.
        classes: The model's.
        threshold: Objects with a lower score are left out.
    """
    scores = detections.scores.float().cpu().tolist()
    objects = []
    for index, (score, label, box) in enumerate(
        zip(scores, detections.labels.tolist(), detections.boxes.float().cpu().tolist(), strict=True)
    ):
        if not (score >= threshold and all(math.isfinite(edge) for edge in (score, *box))):
            continue
        mask = None if detections.masks is None else mask_to_rle(detections.masks[index].cpu().numpy())
        objects.append(Detection(classes[label], label, score, (box[0], box[1], box[2], box[3]), mask))
    return tuple(sorted(objects, key=lambda one: -one.score))


def coco_results(objects: Sequence[Detection], image_id: int, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Return an image's part of COCO's results list.

    COCO's tools take the size of an object from "bbox" where there is one, so that they sort masks into small, medium
    and large by their boxes. To evaluate masks by size as `DetectionMetrics` does, remove "bbox" first.

    Args:
        objects: What was found.
        image_id: The data set's.
        numbers: Category id of each of the model's classes, as `category_numbers` returns them.
    """
    return [
        {
            "image_id": image_id,
            "category_id": numbers[one.label],
            "bbox": one.bbox,
            "score": one.score,
            **({} if one.mask is None else {"segmentation": dict(one.mask)}),
        }
        for one in objects
    ]


def category_numbers(classes: Sequence[str], data: DetectionData) -> tuple[int, ...]:
    """Return the category id of each of a model's classes.

    Args:
        classes: The model's.
        data: Whose ids are used. A class that it does not have takes a number above its largest.
    """
    known = dict(zip(data.classes, data.category_ids, strict=True))
    following = max(known.values(), default=0)
    numbers = []
    for name in classes:
        if name not in known:
            following += 1
        numbers.append(known.get(name, following))
    return tuple(numbers)


def coco_document(predictions: Sequence[DetectionPrediction], classes: Sequence[str]) -> dict[str, Any]:
    """Return predictions on images without labels as a whole COCO annotation file with scores.

    Images are numbered from 1 in their order, categories in the order of the classes. Images that could not be read
    have no size and stand in a list of their own, "unreadable".

    Args:
        predictions: One an image.
        classes: The model's.

    Raises:
        ConfigError: An object is of a class that is not listed.
    """
    readable = [prediction for prediction in predictions if prediction.size is not None]
    annotations: list[dict[str, Any]] = []
    for number, prediction in enumerate(readable, 1):
        for one in prediction.detections:
            if one.label >= len(classes) or classes[one.label] != one.name:
                raise ConfigError(
                    f"{prediction.path}: an object is {one.name!r}, class {one.label}, and the {len(classes)} classes"
                    " given do not have it there; give the classes of the model that predicted it."
                )
        results = coco_results(prediction.detections, number, range(1, len(classes) + 1))
        for result in results:
            area = result["bbox"][2] * result["bbox"][3]
            if "segmentation" in result:
                area = _pixels(result["segmentation"])
            annotations.append({"id": len(annotations) + 1, **result, "area": area, "iscrowd": 0})
    return {
        "images": [
            {"id": number, "file_name": str(p.path), "height": p.size[0], "width": p.size[1]}
            for number, p in enumerate(readable, 1)
            if p.size is not None
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes, 1)],
        "annotations": annotations,
        "unreadable": [{"file_name": str(p.path), "reason": p.error} for p in predictions if p.size is None],
    }


def _pixels(outline: Mapping[str, Any]) -> float:
    from faster_coco_eval.core.mask import area

    return float(area(dict(outline)))
