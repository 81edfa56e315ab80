"""Held-out images side by side with their annotations and with what the trained model says, for the run's report.

Which images are shown is fixed by the evaluation: of a detector's they are spread evenly from the one with the most
mistakes to the one with the fewest; a segmenter's evaluation keeps no figures of single images, so they are spread
evenly over the data set and then sorted. Images are predicted anew, because an evaluation keeps no label maps. An image
that cannot be read is left out.
"""

from __future__ import annotations

import base64
import io
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.transforms.v2 import functional

from fullfield.data.dataset import Unreadable
from fullfield.data.detection.dataset import ObjectDetection
from fullfield.data.detection.objects import DetectionData, DetectionSample, Objects
from fullfield.data.detection.outlines import outline_to_rle
from fullfield.data.segmentation.dataset import SemanticSegmentation
from fullfield.data.segmentation.label_maps import SegmentationData
from fullfield.tasks.detection.coco_form import Detection, named_objects
from fullfield.tasks.detection.draw import draw_detections
from fullfield.tasks.detection.evaluate import DetectionEvaluation
from fullfield.tasks.draw import percent
from fullfield.tasks.open import OpenedDense
from fullfield.tasks.segmentation.draw import draw_segmentation
from fullfield.tasks.segmentation.evaluate import SegmentationEvaluation
from fullfield.tasks.segmentation.inference import predict_labels

__all__ = ["THRESHOLD", "Comparison", "detection_pictures", "objects_found", "segmentation_pictures"]

THRESHOLD = 0.3  # of the score from which an object is shown, as in `predict_detection`
_WIDTH, _NARROWEST, _HEIGHT = 560, 160, 480  # of a drawn picture, pixels
_LONGEST, _MAX_ASPECT = 1600, 3  # of the picture that is drawn on
_BYTES = 80_000  # of a JPEG: 16 of them, which base64 makes a third larger, stay below 2 MB
_MATCH = 0.5  # IoU from which an object counts as found


@dataclass(frozen=True)
class Comparison:
    """One image twice: as annotated and as predicted.

    Attributes:
        path: The file, shown as the tool tip.
        name: Its last part.
        caption: How well it went, in words.
        true: Data URI of the annotated picture, a JPEG.
        predicted: Of the predicted one.
    """

    path: str
    name: str
    caption: str
    true: str
    predicted: str


def detection_pictures(
    opened: OpenedDense, data: DetectionData, evaluation: DetectionEvaluation, *, shown: int = 8
) -> list[Comparison]:
    """Draw some images of the evaluated part with their annotated and their found objects, the worst first.

    Args:
        opened: The detector; its classes are the data's, as those of a run are.
        data: What the run was trained on.
        evaluation: Of `opened` on a part of `data`.
        shown: Images at most.
    """
    samples = data.splits[evaluation.split]
    found = _objects_by_image(evaluation)
    counted = {(image.path, image.image_id) for image in evaluation.images}
    ranked = sorted(
        (_f_measure(sample.objects, found.get(sample.image_id, [])), index)
        for index, sample in enumerate(samples)
        if (sample.path, sample.image_id) in counted
    )
    device = next(opened.model.parameters()).device
    dataset = ObjectDetection(samples, channels=opened.model.preprocess.channels)
    pictures = []
    for _, index in _spread(ranked, shown):
        item = dataset[index]
        if isinstance(item, Unreadable):
            continue
        with torch.inference_mode():
            (detections,) = opened.model([item[0].to(device)])
        objects = named_objects(detections, opened.classes, threshold=THRESHOLD)
        sample, picture = samples[index], _picture(item[0])
        right, wrong = objects_found(sample.objects, objects)
        there = int((~sample.objects.crowd).sum())
        caption = f"{right} of {there} object{'s' * (there != 1)} found, {wrong} wrong"
        annotated = _annotated(sample, data.classes, masks=evaluation.result.mask is not None)
        width = _width(picture)
        pictures.append(
            Comparison(
                str(sample.path),
                sample.path.name,
                caption,
                _jpeg(draw_detections(picture, annotated, width=width)),
                _jpeg(draw_detections(picture, objects, width=width)),
            )
        )
    return pictures


def segmentation_pictures(
    opened: OpenedDense, data: SegmentationData, evaluation: SegmentationEvaluation, *, shown: int = 8
) -> list[Comparison]:
    """Draw some images of the evaluated part with their annotated and their predicted classes, the worst first.

    Args:
        opened: The segmenter; its classes are the data's, as those of a run are.
        data: What the run was trained on.
        evaluation: Of `opened` on a part of `data`.
        shown: Images at most.
    """
    bad = {unreadable.path for unreadable in evaluation.unreadable}
    samples = [s for s in data.splits[evaluation.split] if not {str(s.path), str(s.mask)} & bad]
    device = next(opened.model.parameters()).device
    dataset = SemanticSegmentation(samples, data, channels=opened.preprocess.channels)
    pictures = []
    for index in _spread(range(len(samples)), shown):
        item = dataset[index]
        if isinstance(item, Unreadable):
            continue
        image, mask = item[0], item[1].numpy()
        with torch.inference_mode():
            predicted = predict_labels(opened.model, image.to(device), evaluation.options).cpu().numpy()
        labelled = mask != data.ignore_index
        accuracy = float((mask == predicted)[labelled].mean()) if labelled.any() else math.nan
        beyond = len(data.classes)  # the label of no class, which is drawn untinted
        picture, true, predicted = _drawable(_picture(image), np.where(labelled, mask, beyond), predicted, beyond)
        path, width = samples[index].path, _width(picture)
        drawn = [
            _jpeg(draw_segmentation(picture, labels, data.classes, data.colours, width=width))
            for labels in (true, predicted)
        ]
        caption = f"{percent(accuracy)} of the labelled pixels right"
        pictures.append((accuracy, Comparison(str(path), path.name, caption, *drawn)))
    pictures.sort(key=lambda pair: math.inf if math.isnan(pair[0]) else pair[0])
    return [comparison for _, comparison in pictures]


def objects_found(objects: Objects, found: Sequence[Detection]) -> tuple[int, int]:
    """Return how many annotated objects were found and how many found ones are wrong.

    The surest of the found objects takes the annotated one of its class that it overlaps most, if IoU is at least 0.5
    and no other has taken it. What lies in a crowd of its class, with at least half of its area, is not wrong.

    Args:
        objects: Annotated ones, pixels.
        found: Of the same image.
    """
    if not found:
        return 0, 0
    ordered = sorted(found, key=lambda one: -one.score)
    boxes = torch.tensor([one.box for one in ordered], dtype=torch.float32)
    true = torch.from_numpy(np.asarray(objects.boxes, dtype=np.float32).reshape(-1, 4))
    same = torch.tensor([one.label for one in ordered])[:, None] == torch.from_numpy(objects.labels)[None]
    crowd = torch.from_numpy(objects.crowd)
    overlap = box_iou(boxes, true) * (same & ~crowd)
    within = _share_within(boxes, true) * (same & crowd)
    right = wrong = 0
    for row, excused in zip(overlap, (within >= _MATCH).any(1).tolist(), strict=True):
        if row.numel() and float(row.max()) >= _MATCH:
            overlap[:, int(row.argmax())] = 0
            right += 1
        elif not excused:
            wrong += 1
    return right, wrong


def _share_within(boxes: Tensor, regions: Tensor) -> Tensor:
    """Return the share of the area of each box (N, 4) that lies in each region (M, 4), (N, M)."""
    low = torch.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return (high - low).clamp(min=0).prod(2) / area[:, None].clamp(min=1e-6)


def _f_measure(objects: Objects, found: Sequence[Detection]) -> float:
    """Return the harmonic mean of precision and recall of an image; 1 where nothing was there and nothing found."""
    right, wrong = objects_found(objects, found)
    together = right + wrong + int((~objects.crowd).sum())
    return 2 * right / together if together else 1.0


def _objects_by_image(evaluation: DetectionEvaluation) -> dict[int, list[Detection]]:
    """Return the plainly found objects of each image, without masks."""
    labels = {number: label for label, number in enumerate(evaluation.category_ids)}
    found: dict[int, list[Detection]] = defaultdict(list)
    for one in evaluation.predictions:
        if one["score"] >= THRESHOLD:
            left, top, width, height = one["bbox"]
            label = labels[one["category_id"]]
            box = (left, top, left + width, top + height)
            found[one["image_id"]].append(Detection(evaluation.classes[label], label, one["score"], box))
    return found


def _annotated(sample: DetectionSample, classes: Sequence[str], *, masks: bool) -> list[Detection]:
    objects = sample.objects
    outlines: Sequence[Any] = [None] * len(objects)
    if masks and objects.masks is not None:
        outlines = [outline_to_rle(outline, sample.height, sample.width) for outline in objects.masks]
    return [
        Detection(classes[label] + " (crowd)" * crowd, label, math.nan, (box[0], box[1], box[2], box[3]), outline)
        for label, crowd, box, outline in zip(
            objects.labels.tolist(), objects.crowd.tolist(), objects.boxes.tolist(), outlines, strict=True
        )
    ]


def _spread(ranked: Sequence[Any], shown: int) -> list[Any]:
    """Return `shown` items from first to last, evenly spaced; all where there are no more."""
    if len(ranked) <= shown:
        return list(ranked)
    return [ranked[round(i * (len(ranked) - 1) / max(1, shown - 1))] for i in range(shown)]


def _picture(image: Tensor) -> Image.Image:
    """Return an image (C, H, W), 0 to 1, as a picture."""
    picture: Image.Image = functional.to_pil_image(functional.to_dtype(image, torch.uint8, scale=True)).convert("RGB")
    return picture


def _width(picture: Image.Image) -> int:
    """Return the width to draw at: a high picture is narrower."""
    return max(_NARROWEST, min(_WIDTH, round(_HEIGHT * picture.width / picture.height)))


def _drawable(
    picture: Image.Image, true: NDArray[Any], predicted: NDArray[Any], beyond: int
) -> tuple[Image.Image, NDArray[Any], NDArray[Any]]:
    """Thin out a large picture with its labels, and put a very high one on a ground of label `beyond`."""
    step = max(1, math.ceil(max(picture.size) / _LONGEST))
    true, predicted = true[::step, ::step], predicted[::step, ::step]
    height, width = true.shape
    picture = picture if step == 1 else picture.resize((width, height), Image.Resampling.LANCZOS)
    missing = -(-height // _MAX_ASPECT) - width
    if missing > 0:
        ground = Image.new("RGB", (width + missing, height), "white")
        ground.paste(picture, (0, 0))
        room = ((0, 0), (0, missing))
        return ground, np.pad(true, room, constant_values=beyond), np.pad(predicted, room, constant_values=beyond)
    return picture, true, predicted


def _jpeg(picture: Image.Image) -> str:
    """Return a JPEG of at most `_BYTES` as a data URI; a picture of much detail is made coarser."""
    for quality in (85, 70, 50, 30):
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=quality, optimize=True)
        if buffer.tell() <= _BYTES:
            return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    half = (max(1, picture.width // 2), max(1, picture.height // 2))
    return _jpeg(picture.resize(half, Image.Resampling.LANCZOS))
