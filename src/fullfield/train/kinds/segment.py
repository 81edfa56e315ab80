"""Training a segmenter: images with label maps, a loss of every pixel, mean IoU."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from fullfield.data.dense import DensePreprocess
from fullfield.data.segmentation.dataset import SemanticSegmentation, collate_segmentation
from fullfield.data.segmentation.label_maps import SegmentationData, SegmentationSample
from fullfield.data.segmentation.read import read_segmentation_data
from fullfield.data.segmentation.transforms import SegmentationAugment, train_transform_segmentation
from fullfield.tasks.open import OpenedDense, open_any
from fullfield.tasks.run_folder import RunFolder
from fullfield.tasks.segmentation.evaluate import evaluate_segmentation
from fullfield.tasks.segmentation.heads import HEADS
from fullfield.tasks.segmentation.mean_iou import SegmentationResult
from fullfield.tasks.segmentation.task import SegmentationTask
from fullfield.train.dense_report import segmentation_report
from fullfield.train.kinds.dense import DenseKind, Fitting
from fullfield.train.kinds.find import data_path
from fullfield.train.kinds.kind import Datasets, Finish, Start
from fullfield.train.settings import TrainSettings

__all__ = ["Segment"]

_SCALES = {"none": (1.0, 1.0), "standard": (0.5, 2.0), "auto": (0.5, 2.0), "multi": (0.6, 1.0), "large": (0.25, 4.0)}
_LOOKS = 50  # images whose size is looked at


class Segment(DenseKind):
    """Semantic segmentation."""

    name = "segment"
    score = "miou"
    label = "mIoU"
    columns = ("val_loss", "val_miou", "val_macc", "val_pixel_accuracy")
    foreign = (*DenseKind.foreign, "crop", "copy_paste", "mosaic")

    def read(self, settings: TrainSettings) -> SegmentationData:
        """Read a mask folder, ADE20K or Cityscapes."""
        data = read_segmentation_data(data_path(settings.data), val_share=settings.val_share, seed=settings.seed)
        return replace(data, source=settings.data)

    def fit(
        self, settings: TrainSettings, data: SegmentationData, device: torch.device
    ) -> tuple[TrainSettings, list[str]]:
        """Fill in what the user left open."""
        gpu = device.type != "cpu"
        where = "a GPU" if gpu else "a CPU"
        samples = data.splits["train"]
        fitting = Fitting(settings)
        fitting.fit_model(device)
        fitting.fit("head", "upernet", "the usual head of backbones on ADE20K")
        if not gpu:
            head = HEADS.get(fitting.settings.head or "")
            width = max(64, head.multiple) if head else 64  # a head that there is not is refused later
            fitting.fit("head_args", (f"channels={width}",), "a light head for a CPU")
        side = _typical_side(samples)
        limit = 512 if gpu else 192
        size = min(max(round(side / 32) * 32, 64), limit)
        fitting.fit("image_size", size, f"the images' shorter side is typically {side} px; at most {limit} on {where}")
        fitting.fit("photometric", 0.5, "as in mmsegmentation")
        fitting.fit_schedule(len(samples), 16 if gpu else 8, 2e-4 if gpu else 1e-3, device)
        return fitting.settings, fitting.notes

    def preprocess(
        self, settings: TrainSettings, mean: Sequence[float], std: Sequence[float], channels: int
    ) -> DensePreprocess:
        """Return the window, mean and deviation; images keep their own size, up to `long_side`."""
        return DensePreprocess(None, settings.long_side, settings.image_size, tuple(mean), tuple(std), channels)

    def datasets(self, settings: TrainSettings, data: SegmentationData, preprocess: DensePreprocess) -> Datasets:
        """Return varied squares for training and whole images for validation, one at a time."""
        low, high = _SCALES[settings.scale_jitter]
        augment = SegmentationAugment(
            scale_low=low,
            scale_high=high,
            hflip=settings.hflip,
            vflip=settings.vflip,
            photometric=settings.photometric or 0.0,
        )
        channels = preprocess.channels
        train = train_transform_segmentation(preprocess, augment, ignore_index=data.ignore_index)
        return Datasets(
            SemanticSegmentation(data.splits["train"], data, train, channels=channels, seed=settings.seed),
            SemanticSegmentation(data.splits["val"], data, channels=channels, seed=settings.seed),
            collate_segmentation,
            val_batch=1,
        )

    def more_metadata(self, data: SegmentationData) -> dict[str, Any]:
        """Return the classes' colours and the label that is ignored."""
        return {"colours": [list(colour) for colour in data.colours], "ignore_index": data.ignore_index}

    def task(self, settings: TrainSettings, data: SegmentationData, start: Start) -> SegmentationTask:
        """Return the segmenter with its loss."""
        model: Any = start.model
        return SegmentationTask(model, data.classes, data.ignore_index, settings.loss)

    def row(self, result: SegmentationResult) -> dict[str, float | None]:
        """Return loss, mean IoU, mean accuracy and the share of right pixels."""
        found = result.scalars()
        return {column: found.get(column.removeprefix("val_")) for column in self.columns}

    def finish(
        self,
        run: RunFolder,
        settings: TrainSettings,
        data: SegmentationData,
        unreadable: list[tuple[str, str]],
        fitted: list[str],
        device: torch.device,
    ) -> Finish:
        """Evaluate on the test part if there is one, else on the validation part."""
        split = "test" if "test" in data.splits else "val"
        opened = open_any(run.path, device=str(device))
        assert isinstance(opened, OpenedDense)  # noqa: S101 - for the type checker
        evaluation = evaluate_segmentation(opened, data, split)
        evaluation.save(run.evaluation)
        report = segmentation_report(run, settings, data, opened, evaluation, unreadable, fitted, device)
        result = evaluation.result
        return Finish(
            evaluation,
            report,
            f"[bold]mIoU {result.miou:.1%}[/], pixel accuracy {result.pixel_accuracy:.1%} on {result.images:,} {split}"
            f" images (always the most frequent class: mIoU {result.majority_miou:.1%})",
        )

    def fingerprint(self, sample: SegmentationSample) -> str:
        """Return the names of image and label map; what is in the map is not looked at."""
        return f"{sample.path.name}\0{sample.mask.name}"


def _typical_side(samples: Sequence[SegmentationSample]) -> int:
    """Return the median shorter side, pixels, of some images; only headers are read."""
    sides = []
    for sample in samples[:: max(1, len(samples) // _LOOKS)]:
        try:
            with Image.open(sample.path) as image:
                sides.append(min(image.size))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
    return round(statistics.median(sides)) if sides else 512
