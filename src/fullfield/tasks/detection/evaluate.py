"""Evaluate a trained detector on labelled images: COCO's figures as a whole and by class, and every prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader

from fullfield.data import Unreadable
from fullfield.data.detection.dataset import ObjectDetection, collate_detection
from fullfield.data.detection.objects import DetectionData, DetectionSample
from fullfield.errors import ConfigError, DataError
from fullfield.files import write_csv, write_error, write_json
from fullfield.progress import image_progress
from fullfield.tasks.detection.average_precision import DetectionMetrics, DetectionResult
from fullfield.tasks.detection.coco_form import category_numbers, coco_results, named_objects
from fullfield.tasks.detection.detector import Detector
from fullfield.tasks.detection.task import masks_evaluated

__all__ = ["DetectedImage", "DetectionEvaluation", "OpenedDetector", "evaluate_detection"]

_CERTAIN = 0.5  # the score from which an object counts as plainly found, in the counts of an image


class OpenedDetector(Protocol):
    """A detector ready to be used, in eval mode: what opening a run or a checkpoint gives."""

    @property
    def name(self) -> str:
        """Of the model, for the record."""

    @property
    def model(self) -> Detector:
        """In eval mode."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names; a label is a position in here."""

    @property
    def trained(self) -> bool:
        """Whether the weights were trained by anyone."""

    @property
    def source(self) -> str:
        """What the user named."""


@dataclass(frozen=True)
class DetectedImage:
    """How much was there and how much was found in one labelled image.

    Attributes:
        path: The file.
        image_id: The data set's.
        objects: Annotated ones, crowds not counted.
        crowds: Annotated regions of many objects, which are neither to be found nor wrong.
        found: Everything that the model gave, of whatever score.
        certain: Those of a score of at least 0.5.
    """

    path: Path
    image_id: int
    objects: int
    crowds: int
    found: int
    certain: int


@dataclass(frozen=True, eq=False)
class DetectionEvaluation:
    """Figures and single predictions of a detector on one split of a data set.

    Attributes:
        model: Its name.
        split: The part of the data set.
        classes: The model's.
        category_ids: The number of each class in `predictions`: the data set's own, and larger ones for classes that
            it does not have.
        result: The figures.
        objects: Annotated objects of each class, crowds not counted.
        images: Counts of each image, in the order of the data set.
        predictions: COCO's results list.
        unreadable: Images left out.
        trained: Whether the weights were trained by anyone.
    """

    model: str
    split: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    result: DetectionResult
    objects: tuple[int, ...]
    images: tuple[DetectedImage, ...]
    predictions: tuple[dict[str, Any], ...]
    unreadable: tuple[Unreadable, ...]
    trained: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single predictions and images, as plain JSON values."""
        return {
            "model": self.model,
            "split": self.split,
            "trained": self.trained,
            **self.result.scalars(),
            "per_class": {row["class"]: {key: row[key] for key in row if key != "class"} for row in self._per_class()},
            "unreadable": [bad._asdict() for bad in self.unreadable],
        }

    def save(self, folder: str | Path) -> Path:
        """Write the evaluation into a folder, and return it.

        `evaluation.json` has the figures, `per_class.csv` and `images.csv` the tables, and `predictions.json` COCO's
        results list, which COCO's own tools evaluate (see `coco_results` for what they do with sizes of masks).

        Raises:
            RunError: It can't be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(folder, error) from error
        write_json(folder / "evaluation.json", self.to_dict())
        write_json(folder / "predictions.json", list(self.predictions))
        per_class = self._per_class()
        write_csv(
            folder / "per_class.csv",
            [list(per_class[0]), *([_cell(value) for value in row.values()] for row in per_class)],
        )
        names = ["path", "image_id", "objects", "crowds", "found", "certain"]
        write_csv(folder / "images.csv", [names, *([getattr(one, name) for name in names] for one in self.images)])
        return folder

    def _per_class(self) -> list[dict[str, Any]]:
        """One row a class: its name, category id, number of objects, and AP; None where it has no object."""
        rows: list[dict[str, Any]] = []
        for label, name in enumerate(self.classes):
            row = {"class": name, "category_id": self.category_ids[label], "objects": self.objects[label]}
            row["ap"] = _finite(self.result.box.per_class[label])
            if self.result.mask is not None:
                row["mask_ap"] = _finite(self.result.mask.per_class[label])
            rows.append(row)
        return rows


def evaluate_detection(
    opened: OpenedDetector, data: DetectionData, split: str, *, batch_size: int = 4, workers: int = 0
) -> DetectionEvaluation:
    """Evaluate an opened detector on a part of a data set.

    Args:
        opened: The model with its classes.
        data: Its classes are matched with the model's by name; those that it lacks have no figure.
        split: "train", "val", "test", or "all" for every image that there is.
        batch_size: Images at a time.
        workers: Processes that read images; 0 reads in this one.

    Raises:
        ConfigError: An argument has an impossible value.
        DataError: There is no such split, the data has classes that the model does not know, or not a single image
            could be read.
        MissingExtraError: faster-coco-eval is not installed.
    """
    if batch_size < 1 or workers < 0:
        raise ConfigError(f"batch_size must be at least 1 and workers at least 0, got {batch_size} and {workers}")
    samples = _relabelled(opened, data, split)
    numbers = category_numbers(opened.classes, data)
    dataset = ObjectDetection(samples, channels=opened.model.preprocess.channels)
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=collate_detection)
    metrics = DetectionMetrics(opened.classes, masks=masks_evaluated(opened.model, samples))
    device = next(opened.model.parameters()).device
    images: list[DetectedImage] = []
    predictions: list[dict[str, Any]] = []
    unreadable: list[Unreadable] = []
    with torch.inference_mode(), image_progress(f"evaluating on {split}", len(samples)) as advance:
        for batch in loader:
            unreadable += batch.unreadable
            advance(len(batch.unreadable))
            if not batch.images:
                continue
            found = opened.model([image.to(device) for image in batch.images])
            chosen = [samples[index] for index in batch.indices.tolist()]
            metrics.update(chosen, found)
            for sample, one in zip(chosen, found, strict=True):
                crowds = int(sample.objects.crowd.sum())
                certain = int((one.scores >= _CERTAIN).sum())
                images.append(
                    DetectedImage(
                        sample.path, sample.image_id, len(sample.objects) - crowds, crowds, len(one.scores), certain
                    )
                )
                predictions += coco_results(named_objects(one, opened.classes), sample.image_id, numbers)
            advance(len(batch.images))
    if not images:
        first = unreadable[0] if unreadable else None
        raise DataError(
            f"none of the {len(samples)} images can be read" + (f": {first.path}: {first.reason}" if first else "")
        )
    counted = {(image.path, image.image_id) for image in images}
    return DetectionEvaluation(
        opened.name,
        split,
        opened.classes,
        numbers,
        metrics.compute(),
        _objects_of_classes([s for s in samples if (s.path, s.image_id) in counted], len(opened.classes)),
        tuple(images),
        tuple(predictions),
        tuple(unreadable),
        opened.trained,
    )


def _relabelled(opened: OpenedDetector, data: DetectionData, split: str) -> list[DetectionSample]:
    """Return the samples of a split with labels of the model instead of the data set's, by class name."""
    if split != "all" and split not in data.splits:
        raise DataError(f"{data.source} has no {split!r} part; it has {', '.join(data.splits)} (or --split all)")
    known = {name: label for label, name in enumerate(opened.classes)}
    foreign = [name for name in data.classes if name not in known]
    if foreign:
        raise DataError(
            f"{data.source} has {len(data.classes)} classes and the model {opened.source} knows"
            f" {len(opened.classes)}; it does not know {', '.join(map(repr, foreign[:5]))}"
            f"{', ...' if len(foreign) > 5 else ''}. Rename the categories, or train on this data"
        )
    labels = np.array([known[name] for name in data.classes], dtype=np.int64)
    parts = data.splits.values() if split == "all" else [data.splits[split]]
    return [
        replace(sample, objects=replace(sample.objects, labels=labels[sample.objects.labels]))
        for part in parts
        for sample in part
    ]


def _objects_of_classes(samples: Sequence[DetectionSample], classes: int) -> tuple[int, ...]:
    """Return how many objects of each class there are to find."""
    counts = np.zeros(classes, dtype=np.int64)
    for sample in samples:
        counts += np.bincount(sample.objects.labels[~sample.objects.crowd], minlength=classes)
    return tuple(counts.tolist())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else value
