"""Evaluate a trained model of any task on annotated images: `fullfield.evaluate` and `fullfield eval`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from fullfield.data.sample import SAMPLE_PREFIX, sample_path
from fullfield.errors import ConfigError, RunError
from fullfield.tasks.evaluate import evaluate_opened
from fullfield.tasks.open import OpenedDense, open_any
from fullfield.tasks.run_folder import RunFolder

__all__ = ["evaluate_any", "read_annotated"]


def evaluate_any(
    source: str | Path,
    data: str | Path | None = None,
    *,
    split: str = "auto",
    batch_size: int | None = None,
    workers: int = 0,
    device: str = "auto",
    pretrained: bool = False,
    window: int | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
) -> Any:
    """Evaluate a run, a checkpoint or a registered model on annotated images.

    Args:
        source: A run folder or weights file of any task, or a registered classifier.
        data: Annotated for the model's task: see `read_image_data`, `read_detection_data` and
            `read_segmentation_data`; None for the data that the run was trained on.
        split: "train", "val", "test", "all" (every image that the data set has), or "auto": the test part if there
            is one, else the held-out part of the run's own data, else all images.
        batch_size: Images at a time; None is 64 for classifiers and 4 for detectors. Segmenters take one.
        workers: Processes that read images; 0 reads in this one.
        device: "auto", "cpu", "cuda", ...
        pretrained: For a registered name: fetch timm's weights.
        window: Segmenters: look through sliding windows of this side, pixels; None looks at whole images.
        scales: Segmenters: factors on the image at which the answers are averaged.
        flip: Segmenters: look at the mirrored image, too.

    Returns:
        An `Evaluation`, `DetectionEvaluation` or `SegmentationEvaluation`; each has `result`, `to_dict` and `save`.

    Raises:
        DataError: The data can't be read, has classes that the model does not know, or has no such split.
        CheckpointError: The source is not a usable model.
        ConfigError: An argument has an impossible value.
        MissingExtraError: What the task's figures need is not installed.
    """
    opened = open_any(source, pretrained=pretrained, device=device)
    if opened.task != "segment" and (window is not None or tuple(scales) != (1.0,) or flip):
        raise ConfigError(f"window, scales and flip are for segmenters; {source} is for --task {opened.task}")
    if not isinstance(opened, OpenedDense):
        batch = 64 if batch_size is None else batch_size
        return evaluate_opened(opened, source, data, split=split, batch_size=batch, workers=workers)
    contents = read_annotated(source, data, opened.task)
    if split == "auto":
        split = "test" if "test" in contents.splits else ("val" if data is None else "all")
    if opened.task == "detect":
        from fullfield.tasks.detection.evaluate import evaluate_detection

        batch = 4 if batch_size is None else batch_size
        return evaluate_detection(opened, contents, split, batch_size=batch, workers=workers)
    from fullfield.tasks.segmentation.evaluate import evaluate_segmentation
    from fullfield.tasks.segmentation.inference import InferenceOptions

    options = InferenceOptions(window=window, scales=tuple(scales), flip=flip)
    return evaluate_segmentation(opened, contents, split, workers=workers, options=options)


def read_annotated(source: str | Path, data: str | Path | None, task: str) -> Any:
    """Read data for detection or segmentation.

    Args:
        source: The run, for its own data.
        data: What the user named; None for what the run was trained on, with the same split.
        task: "detect" or "segment".

    Returns:
        `DetectionData` or `SegmentationData`.

    Raises:
        DataError: They can't be read.
        RunError: The source is no run, or its settings do not say what it was trained on.
    """
    how: dict[str, Any] = {}
    if data is None:
        path = Path(source)
        run = RunFolder.open(path.parent.parent if path.is_file() else path)
        config = run.read_config()
        missing = sorted({"data", "val_share", "seed"} - config.keys())
        if missing:
            raise RunError(f"{run.config} lacks {', '.join(missing)}; restore it, or name the data to use")
        data, how = config["data"], {"val_share": config["val_share"], "seed": config["seed"]}
    if task == "detect":
        from fullfield.data.detection.read import read_detection_data

        name = str(data)
        where = sample_path(name.removeprefix(SAMPLE_PREFIX)) if name.startswith(SAMPLE_PREFIX) else name
        return replace(read_detection_data(where, **how), source=name)
    from fullfield.data.segmentation.read import read_segmentation_data

    return read_segmentation_data(data, **how)
