"""Evaluate a trained model on labelled images: figures, confusion matrix, and every single prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from fullfield.data import ImageClassification, ImageData, Sample, Unreadable, collate, eval_transform, read_image_data
from fullfield.errors import ConfigError, DataError
from fullfield.files import write_csv, write_error, write_json
from fullfield.progress import image_progress
from fullfield.tasks.metrics import ClassificationMetrics, ClassificationResult
from fullfield.tasks.run_folder import read_run_data
from fullfield.tasks.source import OpenedModel

__all__ = ["Evaluation", "ImageResult", "evaluate_opened", "evaluate_samples"]


@dataclass(frozen=True)
class ImageResult:
    """What the model said of one labelled image."""

    path: Path
    true: int
    predicted: int
    confidence: float
    """Probability of the predicted class, 0 to 1."""

    @property
    def right(self) -> bool:
        """Whether the prediction is the label."""
        return self.true == self.predicted


@dataclass(frozen=True)
class Evaluation:
    """Figures and single predictions of a model on one split of a data set."""

    model: str
    split: str
    classes: tuple[str, ...]
    result: ClassificationResult
    images: tuple[ImageResult, ...]
    unreadable: tuple[Unreadable, ...]
    trained: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single predictions, as plain JSON values."""
        recall = {name: _finite(value) for name, value in zip(self.classes, self.result.recall, strict=True)}
        return {
            "model": self.model,
            "split": self.split,
            "trained": self.trained,
            **{name: _finite(value) for name, value in self.result.scalars().items()},
            "recall": recall,
            "confusion": self.result.confusion.tolist(),
            "unreadable": [bad._asdict() for bad in self.unreadable],
        }

    def save(self, folder: str | Path) -> Path:
        """Write `evaluation.json`, `predictions.csv` and `confusion.csv` into a folder, and return it.

        Raises:
            RunError: It can't be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(folder, error) from error
        write_json(folder / "evaluation.json", self.to_dict())
        rows: list[list[Any]] = [
            [
                image.path,
                self.classes[image.true],
                self.classes[image.predicted],
                f"{image.confidence:.4f}",
                int(image.right),
            ]
            for image in self.images
        ]
        write_csv(folder / "predictions.csv", [["path", "true", "predicted", "confidence", "right"], *rows])
        matrix = [[name, *row] for name, row in zip(self.classes, self.result.confusion.tolist(), strict=True)]
        write_csv(folder / "confusion.csv", [["true \\ predicted", *self.classes], *matrix])
        return folder


def evaluate_opened(
    opened: OpenedModel,
    source: str | Path,
    data: str | Path | None = None,
    *,
    split: str = "auto",
    batch_size: int = 64,
    workers: int = 0,
) -> Evaluation:
    """Evaluate a classifier on labelled images.

    Args:
        opened: The model.
        source: What it was opened from, for its own data.
        data: A folder, a CSV list or "sample:NAME"; None for the data that the run was trained on.
        split: "train", "val", "test", "all" (every image that the data set has), or "auto": the test part if there
            is one, else the held-out part of the run's own data, else all images.
        batch_size: Images at a time.
        workers: Processes that read images; 0 reads in this one.

    Raises:
        DataError: The data can't be read, has classes that the model does not know, or has no such split.
        ConfigError: An argument has an impossible value.
    """
    if batch_size < 1 or workers < 0:
        raise ConfigError(f"batch_size must be at least 1 and workers at least 0, got {batch_size} and {workers}")
    own = data is None
    if data is None:
        if opened.name == str(source) and not Path(source).exists():
            raise DataError(
                f"{source} is a registered model without data of its own; name the images to evaluate it on"
            )
        contents = read_run_data(source)
    else:
        contents = read_image_data(data)
    split = _choose_split(contents, split, own)
    samples = _relabel(contents, split, opened)
    return evaluate_samples(opened, samples, split, batch_size=batch_size, workers=workers)


def evaluate_samples(
    opened: OpenedModel, samples: Sequence[Sample], split: str, *, batch_size: int = 64, workers: int = 0
) -> Evaluation:
    """Evaluate an opened model on samples whose labels are indices into its classes.

    Args:
        opened: See `fullfield.tasks.source.open_model`.
        samples: At least one.
        split: Their name, for the record.
        batch_size: Images at a time.
        workers: Processes that read images.

    Raises:
        DataError: Not a single image could be read.
    """
    device = next(opened.model.parameters()).device
    dataset = ImageClassification(samples, eval_transform(opened.preprocess))
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=collate)
    metrics = ClassificationMetrics(len(opened.classes)).to(device)
    images: list[ImageResult] = []
    unreadable: list[Unreadable] = []
    with torch.inference_mode(), image_progress(f"evaluating on {split}", len(samples)) as advance:
        for batch in loader:
            unreadable += batch.unreadable
            advance(len(batch.unreadable))
            if not len(batch.images):
                continue
            logits = opened.model(batch.images.to(device))
            metrics.update(logits, batch.labels.to(device))
            confidence, predicted = logits.float().softmax(dim=1).max(dim=1)
            for index, guess, share in zip(
                batch.indices.tolist(), predicted.tolist(), confidence.tolist(), strict=True
            ):
                images.append(ImageResult(samples[index].path, samples[index].label, guess, share))
            advance(len(batch.images))
    if not images:
        first = unreadable[0] if unreadable else None
        raise DataError(
            f"none of the {len(samples)} images can be read" + (f": {first.path}: {first.reason}" if first else "")
        )
    return Evaluation(
        opened.name, split, opened.classes, metrics.compute(), tuple(images), tuple(unreadable), opened.trained
    )


def _choose_split(contents: ImageData, split: str, own: bool) -> str:
    if split == "auto":
        return "test" if "test" in contents.splits else ("val" if own else "all")
    if split != "all" and split not in contents.splits:
        raise DataError(
            f"{contents.source} has no {split!r} part; it has {', '.join(contents.splits)} (or --split all)"
        )
    return split


def _relabel(contents: ImageData, split: str, opened: OpenedModel) -> list[Sample]:
    """Turn labels of the data set into labels of the model, by class name."""
    known = {name: index for index, name in enumerate(opened.classes)}
    foreign = [name for name in contents.classes if name not in known]
    if foreign:
        raise DataError(
            f"{contents.source} has {len(contents.classes)} classes and the model {opened.source} knows"
            f" {len(opened.classes)}; it does not know {', '.join(map(repr, foreign[:5]))}"
            f"{', ...' if len(foreign) > 5 else ''}. Rename the folders, or train on this data"
        )
    parts = contents.splits.values() if split == "all" else [contents.splits[split]]
    return [replace(s, label=known[contents.classes[s.label]]) for part in parts for s in part]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
