"""Predict with a trained model of any task: `fullfield.predict` and `fullfield predict`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fullfield.errors import ConfigError
from fullfield.tasks.open import OpenedDense, open_any
from fullfield.tasks.predict import predict
from fullfield.tasks.source import OpenedModel

__all__ = ["predict_any"]


def predict_any(
    source: str | Path | OpenedModel | OpenedDense,
    images: str | Path | Sequence[str | Path],
    *,
    top: int = 5,
    threshold: float = 0.3,
    batch_size: int | None = None,
    device: str = "auto",
    pretrained: bool = False,
    window: int | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
) -> Any:
    """Predict what is in images.

    Args:
        source: A run folder or weights file of any task, a registered classifier, or what `open_any` returned.
        images: Files and folders (searched through); one or several.
        top: Classifiers: how many classes to name for each image.
        threshold: Detectors: objects with a lower score are left out, 0 to 1.
        batch_size: Images at a time; None is 16 for classifiers and 4 for detectors. Segmenters take one.
        device: "auto", "cpu", "cuda", ...
        pretrained: For a registered name: fetch timm's weights.
        window: Segmenters: look through sliding windows of this side, pixels; None looks at whole images.
        scales: Segmenters: factors on the image at which the answers are averaged.
        flip: Segmenters: look at the mirrored image, too.

    Returns:
        Of a classifier a list of `Prediction`, of a detector one of `DetectionPrediction`, one an image, in order. Of a
        segmenter an iterator of `SegmentationPrediction`, which keeps no label map. An image that can't be read has
        none, and says why.

    Raises:
        DataError: A path does not exist, or a folder holds no image.
        CheckpointError: The source is not a usable model.
        ConfigError: An argument has an impossible value.
    """
    if isinstance(source, OpenedModel | OpenedDense):
        opened = source
    else:
        opened = open_any(source, pretrained=pretrained, device=device)
    if opened.task != "segment" and (window is not None or tuple(scales) != (1.0,) or flip):
        raise ConfigError(f"window, scales and flip are for segmenters; {opened.source} is for --task {opened.task}")
    if not isinstance(opened, OpenedDense):
        return predict(opened, images, top=top, batch_size=16 if batch_size is None else batch_size)
    if opened.task == "detect":
        from fullfield.tasks.detection.predict import predict_detection

        batch = 4 if batch_size is None else batch_size
        return predict_detection(opened, images, threshold=threshold, batch_size=batch)
    from fullfield.tasks.segmentation.inference import InferenceOptions
    from fullfield.tasks.segmentation.predict import predict_segmentation

    options = InferenceOptions(window=window, scales=tuple(scales), flip=flip)
    return predict_segmentation(opened, images, options)
