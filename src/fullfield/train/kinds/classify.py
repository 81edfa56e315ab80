"""Training a classifier: folders of images, cross-entropy, top-1."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fullfield.data import (
    Augment,
    ImageClassification,
    ImageData,
    Preprocess,
    collate,
    eval_transform,
    read_image_data,
    train_transform,
)
from fullfield.models.registry import model_spec
from fullfield.models.weights import save
from fullfield.tasks.classify import ClassificationTask
from fullfield.tasks.evaluate import evaluate_samples
from fullfield.tasks.metrics import ClassificationResult
from fullfield.tasks.run_folder import RunFolder
from fullfield.tasks.source import checkpoint_metadata, open_model
from fullfield.train.distill import Distillation, open_teacher
from fullfield.train.fitting import fit_settings
from fullfield.train.kinds.kind import Datasets, Finish, Kind, Start
from fullfield.train.report import write_report
from fullfield.train.settings import DENSE_SETTINGS, TrainSettings
from fullfield.train.start import check_start, fit_to_weights, resumed_model, start_of
from fullfield.train.summary import run_report

__all__ = ["Classify"]


class Classify(Kind):
    """Image classification."""

    name = "classify"
    score = "top1"
    label = "top-1"
    columns = ("val_loss", "val_top1", "val_top5", "val_recall")
    foreign = DENSE_SETTINGS

    def read(self, settings: TrainSettings) -> ImageData:
        """Read a list of labelled images."""
        return read_image_data(settings.data, val_share=settings.val_share, seed=settings.seed)

    def fit(self, settings: TrainSettings, data: ImageData, device: torch.device) -> tuple[TrainSettings, list[str]]:
        """Fill in what the user left open."""
        return fit_settings(settings, data, device)

    def with_weights(self, settings: TrainSettings) -> TrainSettings:
        """Take the model of given weights."""
        return fit_to_weights(settings, settings.weights) if settings.weights else settings

    def start(self, settings: TrainSettings, data: ImageData) -> Start:
        """Return the model, with random or given weights."""
        return Start(*start_of(settings, data))

    def check(
        self, settings: TrainSettings, start: Start, data: ImageData, device: torch.device, processes: int
    ) -> None:
        """Check sizes, parts to freeze, loggers and the teacher, and foresee the memory."""
        check_start(settings, start.model, start.preprocess, data.classes, device, processes)

    def resumed(self, settings: TrainSettings, name: str, arguments: dict[str, Any], metadata: dict[str, Any]) -> Start:
        """Return the model of a state."""
        return Start(resumed_model(settings, name, arguments), Preprocess.from_dict(metadata["preprocess"]))

    def identity(self, settings: TrainSettings, model: nn.Module) -> tuple[str, dict[str, Any]]:
        """Return the registered name and arguments."""
        spec = model_spec(model)
        return (spec.name, spec.arguments) if spec else (settings.model or "", {})

    def metadata(self, data: ImageData, start: Start) -> dict[str, Any]:
        """Return classes and preprocessing."""
        return checkpoint_metadata(data.classes, start.preprocess)

    def datasets(self, settings: TrainSettings, data: ImageData, preprocess: Preprocess) -> Datasets:
        """Return varied training images and plain validation images."""
        augment = Augment(
            scale_min=settings.scale_min,
            hflip=settings.hflip,
            vflip=settings.vflip,
            rand_augment=settings.rand_augment,
            erasing=settings.erasing,
        )
        return Datasets(
            ImageClassification(
                data.splits["train"],
                train_transform(preprocess, augment),
                seed=settings.seed,
                min_side=preprocess.image_size,
            ),
            ImageClassification(data.splits["val"], eval_transform(preprocess), seed=settings.seed),
            collate,
        )

    def task(self, settings: TrainSettings, data: ImageData, start: Start) -> ClassificationTask:
        """Return the classifier with its loss, a teacher's part in it included."""
        distill = None
        if settings.teacher:
            distill = Distillation(
                open_teacher(settings.teacher, classes=data.classes, preprocess=start.preprocess),
                temperature=settings.distill_temperature,
                weight=settings.distill_weight,
                hard=settings.distill_hard,
            )
        return ClassificationTask(
            start.model,
            len(data.classes),
            label_smoothing=settings.label_smoothing,
            mixup=settings.mixup,
            cutmix=settings.cutmix,
            distill=distill,
        )

    def row(self, result: ClassificationResult) -> dict[str, float | None]:
        """Return loss, top-1, top-5 and mean recall."""
        return {
            "val_loss": result.loss,
            "val_top1": result.top1,
            "val_recall": result.mean_recall,
            "val_top5": result.top5,
        }

    def save(self, model: nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
        """Write a checkpoint that `open_model` reads."""
        save(model, path, metadata)

    def finish(
        self,
        run: RunFolder,
        settings: TrainSettings,
        data: ImageData,
        unreadable: list[tuple[str, str]],
        fitted: list[str],
        device: torch.device,
    ) -> Finish:
        """Evaluate on the test part if there is one, else on the validation part."""
        split = "test" if "test" in data.splits else "val"
        opened = open_model(run.path, device=str(device))
        evaluation = evaluate_samples(opened, data.splits[split], split, batch_size=settings.batch_size or 32)
        evaluation.save(run.evaluation)
        page = run_report(run, settings, data, evaluation, unreadable, fitted, device)
        result = evaluation.result
        return Finish(
            evaluation,
            write_report(page, run.report),
            f"[bold]Top-1 {result.top1:.1%}[/] on {result.images:,} {split} images"
            f" (always guessing the most frequent class: {result.majority:.1%})",
        )
