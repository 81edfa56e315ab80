"""Evaluate a segmenter on images with label maps: mean IoU, figures of each class, confusion of pixels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fullfield.data.dataset import Unreadable
from fullfield.data.image_data import quote_some
from fullfield.data.segmentation.dataset import SemanticSegmentation, collate_segmentation
from fullfield.data.segmentation.label_maps import SegmentationData
from fullfield.errors import ConfigError, DataError
from fullfield.files import write_csv, write_error, write_json
from fullfield.progress import image_progress
from fullfield.tasks.segmentation.inference import WHOLE_IMAGE, InferenceOptions
from fullfield.tasks.segmentation.mean_iou import SegmentationMetrics, SegmentationResult
from fullfield.tasks.segmentation.opened import OpenedSegmenter
from fullfield.tasks.segmentation.task import count_image

__all__ = ["SegmentationEvaluation", "evaluate_segmentation"]

_IGNORED = -1  # never a label, however many classes the model has


@dataclass(frozen=True, eq=False)
class SegmentationEvaluation:
    """Figures of a segmenter on one split of a data set."""

    model: str
    split: str
    classes: tuple[str, ...]
    result: SegmentationResult
    unreadable: tuple[Unreadable, ...]
    options: InferenceOptions
    trained: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain JSON values; figures of a class that has none are null."""
        return {
            "task": "segment",
            "model": self.model,
            "split": self.split,
            "trained": self.trained,
            "options": {**asdict(self.options), "scales": list(self.options.scales)},
            **{name: _finite(value) for name, value in self.result.scalars().items()},
            "iou": dict(zip(self.classes, map(_finite, self.result.iou), strict=True)),
            "accuracy": dict(zip(self.classes, map(_finite, self.result.acc), strict=True)),
            "confusion": self.result.confusion.tolist(),
            "unreadable": [bad._asdict() for bad in self.unreadable],
        }

    def save(self, folder: str | Path) -> Path:
        """Write `evaluation.json`, `per_class.csv` and `confusion.csv` into a folder, and return it.

        Raises:
            RunError: It can't be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(folder, error) from error
        write_json(folder / "evaluation.json", self.to_dict())
        confusion = self.result.confusion
        rows: list[list[Any]] = [["class", "iou", "accuracy", "true_pixels", "predicted_pixels"]]
        for label, name in enumerate(self.classes):
            figures = [_decimal(self.result.iou[label]), _decimal(self.result.acc[label])]
            rows.append([name, *figures, int(confusion[label].sum()), int(confusion[:, label].sum())])
        write_csv(folder / "per_class.csv", rows)
        matrix = [[name, *row] for name, row in zip(self.classes, confusion.tolist(), strict=True)]
        write_csv(folder / "confusion.csv", [["true \\ predicted", *self.classes], *matrix])
        return folder


def evaluate_segmentation(
    opened: OpenedSegmenter,
    data: SegmentationData,
    split: str,
    *,
    workers: int = 0,
    options: InferenceOptions = WHOLE_IMAGE,
) -> SegmentationEvaluation:
    """Evaluate an opened segmenter on one split, each image at its own size.

    Args:
        opened: The model.
        data: Its classes are matched with the model's by name.
        split: "train", "val", "test", or "all": every image that the data set has.
        workers: Processes that read images; 0 reads in this one.
        options: How images are looked at: whole or through windows, at which scales.

    Raises:
        DataError: The data have classes that the model does not know, no such split, or not one readable image.
        ConfigError: `workers` is below 0.
    """
    if workers < 0:
        raise ConfigError(f"workers is {workers}; it must be at least 0")
    if split != "all" and split not in data.splits:
        raise DataError(f"{data.source} has no {split!r} part; it has {', '.join(data.splits)} (or --split all)")
    parts = data.splits.values() if split == "all" else [data.splits[split]]
    samples = [sample for part in parts for sample in part]
    known = _labels_of_model(data, opened)
    device = next(opened.model.parameters()).device
    dataset = SemanticSegmentation(samples, data, channels=opened.preprocess.channels)
    loader = DataLoader(dataset, batch_size=1, num_workers=workers, collate_fn=collate_segmentation)
    metrics = SegmentationMetrics(len(opened.classes), _IGNORED).to(device)
    unreadable: list[Unreadable] = []
    with torch.inference_mode(), image_progress(f"evaluating on {split}", len(samples)) as advance:
        for batch in loader:
            unreadable += batch.unreadable
            if len(batch.indices):
                labels = _relabel(batch.masks[0], data.ignore_index, known)
                count_image(opened.model, batch.images[0].to(device), labels.to(device), metrics, options)
            advance(1)
    result = metrics.compute()
    if not result.images:
        first = unreadable[0] if unreadable else None
        raise DataError(
            f"none of the {len(samples)} images can be read" + (f": {first.path}: {first.reason}" if first else "")
        )
    return SegmentationEvaluation(
        opened.name, split, opened.classes, result, tuple(unreadable), options, opened.trained
    )


def _labels_of_model(data: SegmentationData, opened: OpenedSegmenter) -> Tensor:
    """Return the model's label of each label of the data, (classes of the data,) int64, by class name."""
    known = {name: label for label, name in enumerate(opened.classes)}
    foreign = [name for name in data.classes if name not in known]
    if foreign:
        raise DataError(
            f"{data.source} has {len(data.classes)} classes and the model {opened.source} knows {len(known)}; it does"
            f" not know {quote_some(foreign)}. Rename them in the class file, or train on this data"
        )
    return torch.tensor([known[name] for name in data.classes])


def _relabel(labels: Tensor, ignore_index: int, known: Tensor) -> Tensor:
    """Turn labels of the data (H, W) into labels of the model, and `ignore_index` into `_IGNORED`."""
    valid = labels != ignore_index
    relabelled = torch.full_like(labels, _IGNORED)
    relabelled[valid] = known[labels[valid]]
    return relabelled


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _decimal(value: float) -> str:
    return f"{value:.4f}" if np.isfinite(value) else ""
