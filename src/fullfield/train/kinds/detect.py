"""Training a detector: annotated images, the losses of its head, average precision."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from fullfield.data.dense import DensePreprocess
from fullfield.data.detection.dataset import ObjectDetection, collate_detection
from fullfield.data.detection.objects import DetectionData, DetectionSample
from fullfield.data.detection.read import read_detection_data
from fullfield.data.detection.transforms import DetectionAugment, train_transform_detection
from fullfield.models.registry import list_models
from fullfield.tasks.detection.average_precision import DetectionResult
from fullfield.tasks.detection.evaluate import evaluate_detection
from fullfield.tasks.detection.task import DetectionTask
from fullfield.tasks.open import OpenedDense, open_any
from fullfield.tasks.padding_leaks import unmasked_modules
from fullfield.tasks.run_folder import RunFolder
from fullfield.train.dense_report import detection_report
from fullfield.train.kinds.dense import DenseKind, Fitting
from fullfield.train.kinds.find import data_path
from fullfield.train.kinds.kind import Datasets, Finish, Start
from fullfield.train.settings import TrainSettings

__all__ = ["Detect"]

_MASKS = ("mask_rcnn", "cascade_mask_rcnn")


class Detect(DenseKind):
    """Object detection and instance segmentation."""

    name = "detect"
    score = "ap"
    label = "AP"
    columns = ("val_ap", "val_ap50", "val_ap75", "val_mask_ap", "val_mask_ap50")
    foreign = (*DenseKind.foreign, "loss")

    def read(self, settings: TrainSettings) -> DetectionData:
        """Read COCO, Pascal VOC or YOLO annotations."""
        data = read_detection_data(data_path(settings.data), val_share=settings.val_share, seed=settings.seed)
        return replace(data, source=settings.data)

    def fit(
        self, settings: TrainSettings, data: DetectionData, device: torch.device
    ) -> tuple[TrainSettings, list[str]]:
        """Fill in what the user left open."""
        gpu = device.type != "cpu"
        where = "a GPU" if gpu else "a CPU"
        samples = data.splits["train"]
        fitting = Fitting(settings)
        fitting.fit_model(device)
        if data.has_masks and gpu:
            fitting.fit("head", "mask_rcnn", "the data has outlines")
        else:
            fitting.fit("head", "fcos", "boxes" if not data.has_masks else "a CPU; --head mask_rcnn draws outlines")
        if not gpu:
            fitting.fit("head_args", ("fpn_channels=64",), "a light head for a CPU")
        side = round(statistics.median(min(s.height, s.width) for s in samples))
        limit = 800 if gpu else 256
        size = min(max(round(side / 32) * 32, 64), limit)
        fitting.fit("image_size", size, f"the images' shorter side is typically {side} px; at most {limit} on {where}")
        used = fitting.settings.image_size or size
        fitting.fit("long_side", round(used * 1333 / 800), "in proportion to COCO's 800 and 1333")
        fitting.fit_schedule(len(samples), 16 if gpu else 4, 2e-4 if gpu else 1e-3, device)
        return fitting.settings, fitting.notes

    def start(self, settings: TrainSettings, data: DetectionData) -> Start:
        """Return a new detector; where the padding of a batch would reach its net, say so."""
        start = super().start(settings, data)
        backbone: Any = start.model.backbone
        if backbone.name in {info.name for info in list_models() if info.source == "fullfield"}:
            return start  # these are covered, which is tested
        leaks = unmasked_modules(backbone, start.preprocess.channels)
        if not leaks:
            return start
        note = (
            f"In {backbone.name} the padding of a batch reaches the images through {', '.join(leaks[:3])}: images of"
            " several sizes give other objects together than alone."
        )
        return replace(start, notes=(*start.notes, note))

    def preprocess(
        self, settings: TrainSettings, mean: Sequence[float], std: Sequence[float], channels: int
    ) -> DensePreprocess:
        """Return sides, mean and deviation."""
        short = settings.image_size or 800
        long = max(short, settings.long_side or round(short * 1333 / 800))
        return DensePreprocess(short, long, None, tuple(mean), tuple(std), channels)

    def datasets(self, settings: TrainSettings, data: DetectionData, preprocess: DensePreprocess) -> Datasets:
        """Return varied training images and plain validation images."""
        augment = DetectionAugment(
            scale_jitter="multi" if settings.scale_jitter == "auto" else settings.scale_jitter,
            hflip=settings.hflip,
            vflip=settings.vflip,
            crop=settings.crop,
            photometric=settings.photometric or 0.0,
            copy_paste=settings.copy_paste,
            mosaic=settings.mosaic,
        )
        channels = preprocess.channels
        masks = settings.head in _MASKS or settings.copy_paste > 0
        transform = train_transform_detection(preprocess, augment)
        return Datasets(
            ObjectDetection(data.splits["train"], transform, channels=channels, masks=masks, seed=settings.seed),
            ObjectDetection(data.splits["val"], channels=channels, seed=settings.seed),
            collate_detection,
        )

    def task(self, settings: TrainSettings, data: DetectionData, start: Start) -> DetectionTask:
        """Return the detector with its losses."""
        model: Any = start.model
        if settings.grad_checkpointing:  # blocks that are computed again would see the padding
            model.mask_padding = False
        return DetectionTask(model, data.classes, validation=data.splits["val"])

    def row(self, result: DetectionResult) -> dict[str, float | None]:
        """Return AP of boxes, and of masks where there are any."""
        found = result.scalars()
        return {column: found.get(column.removeprefix("val_")) for column in self.columns}

    def finish(
        self,
        run: RunFolder,
        settings: TrainSettings,
        data: DetectionData,
        unreadable: list[tuple[str, str]],
        fitted: list[str],
        device: torch.device,
    ) -> Finish:
        """Evaluate on the test part if there is one, else on the validation part."""
        split = "test" if "test" in data.splits else "val"
        opened = open_any(run.path, device=str(device))
        assert isinstance(opened, OpenedDense)  # noqa: S101 - for the type checker
        evaluation = evaluate_detection(opened, data, split, batch_size=min(settings.batch_size or 4, 4))
        evaluation.save(run.evaluation)
        report = detection_report(run, settings, data, opened, evaluation, unreadable, fitted, device)
        found = evaluation.result.scalars()
        masks = f", mask AP {found['mask_ap']:.1%}" if "mask_ap" in found else ""
        return Finish(
            evaluation,
            report,
            f"[bold]AP {found.get('ap', 0.0):.1%}[/], AP50 {found.get('ap50', 0.0):.1%}{masks} on"
            f" {evaluation.result.images:,} {split} images",
        )

    def fingerprint(self, sample: DetectionSample) -> str:
        """Return the file's name with labels, boxes and areas; an outline changes its area, as a rule."""
        o = sample.objects
        boxes, areas = o.boxes.round(1).tolist(), o.areas.round(1).tolist()
        return f"{sample.path.name}\0{o.labels.tolist()}{boxes}{areas}{o.crowd.tolist()}"
