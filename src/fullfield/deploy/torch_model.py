"""A run, a weights file or a registered model behind the calls of `FileModel`; needs PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from PIL import Image

from fullfield.deploy.engines.contract import check_threads, release_of
from fullfield.deploy.engines.torch_engine import device_text
from fullfield.tasks.answers import Prediction
from fullfield.tasks.open import OpenedDense, open_any

__all__ = ["TorchModel"]


class TorchModel:
    """What `Predictor` asks for answers when it was given what PyTorch runs.

    Args:
        source: A run folder, a weights file or a registered name.
        device: "auto", "cpu", "cuda", ...
        threads: Of the CPU, for all of PyTorch in this process; None leaves them as they are.
        pretrained: For a registered name: fetch timm's weights.

    Raises:
        CheckpointError: The path holds no usable weights.
        ModelNotFoundError: Neither a path nor a registered name.
        ConfigError: The device is not to be had here, or `threads` is impossible.
    """

    def __init__(self, source: str | Path, *, device: str, threads: int | None, pretrained: bool) -> None:
        check_threads(threads)
        self._opened: Any = open_any(source, pretrained=pretrained, device=device)
        if threads is not None:
            torch.set_num_threads(threads)
        opened = self._opened
        self.task, self.name, self.classes = opened.task, opened.name, opened.classes
        self.colours = opened.colours if isinstance(opened, OpenedDense) and opened.task == "segment" else ()
        self.trained = opened.trained
        where = next(opened.model.parameters()).device
        self.engine = f"PyTorch {release_of(torch.__version__)} on {device_text(where)}"
        # Detectors hang hooks on their modules while they look at images of several sizes.
        self._lock = Lock()

    def prepare(self, image: Image.Image) -> Image.Image:
        """Return the picture: the task's own functions prepare it."""
        return image

    def answers(
        self, paths: Sequence[Path], prepared: Sequence[Image.Image], *, top: int, threshold: float
    ) -> list[Any]:
        """Return a prediction for each image, in order; see `FileModel.answers`."""
        with self._lock:
            if self.task == "classify":
                return self._labels(paths, prepared, top)
            return (self._objects if self.task == "detect" else self._pixels)(paths, prepared, threshold)

    def close(self) -> None:
        """Give back the weights' memory."""
        self._opened = None

    def _labels(self, paths: Sequence[Path], images: Sequence[Image.Image], top: int) -> list[Any]:
        from fullfield.tasks.predict import likeliest_classes

        found = likeliest_classes(self._opened, images, top)
        return [Prediction(path, labels) for path, labels in zip(paths, found, strict=True)]

    def _objects(self, paths: Sequence[Path], images: Sequence[Image.Image], threshold: float) -> list[Any]:
        from fullfield.tasks.detection.answers import DetectionPrediction
        from fullfield.tasks.detection.predict import objects_in

        found = objects_in(self._opened, images, threshold)
        return [
            DetectionPrediction(path, objects, (image.height, image.width))
            for path, objects, image in zip(paths, found, images, strict=True)
        ]

    def _pixels(self, paths: Sequence[Path], images: Sequence[Image.Image], _: float) -> list[Any]:
        from fullfield.tasks.segmentation.answers import SegmentationPrediction, shares_of
        from fullfield.tasks.segmentation.predict import labels_of

        maps = [labels_of(self._opened, image) for image in images]
        return [
            SegmentationPrediction(path, labels, shares_of(labels, self.classes))
            for path, labels in zip(paths, maps, strict=True)
        ]
