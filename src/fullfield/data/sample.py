"""The image sets that come with the package, small enough to ship and licensed for it.

| name                | annotated for  | layout                                                       |
|---------------------|----------------|--------------------------------------------------------------|
| `blood_cells`       | classification | a folder for each class, as `read_image_data` reads it       |
| `blood_cells_boxes` | detection      | COCO, as `read_detection_data` reads it                      |
| `nuclei`            | segmentation   | images and label maps, as `read_segmentation_data` reads it  |

Each is a folder of `samples/` with `SOURCE.md` and `LICENSE` beside the images. The scripts that made them are in
`studies/embedded_sample/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fullfield.errors import DataError, nearest

__all__ = ["SAMPLE_PREFIX", "sample_names", "sample_path"]

SampleTask = Literal["classify", "detect", "segment"]

SAMPLE_PREFIX = "sample:"
ROOT = Path(__file__).resolve().parent / "samples"
TASKS: dict[str, SampleTask] = {"blood_cells": "classify", "blood_cells_boxes": "detect", "nuclei": "segment"}
NOUNS: dict[SampleTask, str] = {"classify": "classification", "detect": "detection", "segment": "segmentation"}


def sample_names(task: SampleTask | None = None) -> list[str]:
    """Return the names of the embedded samples, sorted.

    Args:
        task: Only those annotated for it; None for all.
    """
    return sorted(name for name in TASKS if task in (None, TASKS[name]))


def sample_path(name: str, task: SampleTask | None = None) -> Path:
    """Return the folder of an embedded sample.

    Args:
        name: One of `sample_names()`.
        task: What it is to be read for; None if that does not matter.

    Raises:
        DataError: There is no sample of that name, or it is annotated for another task.
    """
    names = sample_names()
    if name not in names:
        hint = nearest(name, names) or "."
        raise DataError(f"There is no embedded sample {name!r}{hint} The samples are: {', '.join(names)}.")
    if task is not None and task != TASKS[name]:
        raise DataError(
            f"The embedded sample {name!r} is annotated for {NOUNS[TASKS[name]]}, not for {NOUNS[task]}. Use"
            f" {' or '.join(SAMPLE_PREFIX + other for other in sample_names(task))}."
        )
    return ROOT / name
