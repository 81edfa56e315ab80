"""Which task a user's data is annotated for, where `task` is left open."""

from __future__ import annotations

from typing import Literal

from fullfield.data.sample import SAMPLE_PREFIX, sample_path
from fullfield.train.settings import TrainSettings

__all__ = ["data_path", "find_task"]


def find_task(settings: TrainSettings) -> Literal["classify", "detect", "segment"]:
    """Return classify, detect or segment by a look at the data: file names, not contents.

    A folder of images by class, a list and archives are for classification; annotations of objects for detection;
    images with label maps beside them for segmentation.

    Args:
        settings: Of which `data` is looked at.
    """
    from fullfield.data.detection.read import is_detection_data
    from fullfield.data.segmentation.read import is_segmentation_data

    source = data_path(settings.data)
    if is_detection_data(source):
        return "detect"
    if is_segmentation_data(source):
        return "segment"
    return "classify"


def data_path(source: str) -> str:
    """Return where data lie: the folder of an embedded sample, or what the user named.

    Raises:
        DataError: There is no such sample.
    """
    if source.startswith(SAMPLE_PREFIX):
        return str(sample_path(source.removeprefix(SAMPLE_PREFIX)))
    return source
