"""Objects in images: reading COCO, Pascal VOC and YOLO annotations, and making batches of them."""

from typing import TYPE_CHECKING, Any

from fullfield.lazy import find

if TYPE_CHECKING:
    from fullfield.data.detection.dataset import DetectionBatch, ObjectDetection, collate_detection
    from fullfield.data.detection.objects import DetectionData, DetectionSample, Objects
    from fullfield.data.detection.read import is_detection_data, read_detection_data
    from fullfield.data.detection.transforms import DetectionAugment, train_transform_detection

__all__ = [
    "DetectionAugment",
    "DetectionBatch",
    "DetectionData",
    "DetectionSample",
    "ObjectDetection",
    "Objects",
    "collate_detection",
    "is_detection_data",
    "read_detection_data",
    "train_transform_detection",
]

_HOMES = {
    "DetectionBatch": "fullfield.data.detection.dataset",
    "ObjectDetection": "fullfield.data.detection.dataset",
    "collate_detection": "fullfield.data.detection.dataset",
    "DetectionData": "fullfield.data.detection.objects",
    "DetectionSample": "fullfield.data.detection.objects",
    "Objects": "fullfield.data.detection.objects",
    "is_detection_data": "fullfield.data.detection.read",
    "read_detection_data": "fullfield.data.detection.read",
    "DetectionAugment": "fullfield.data.detection.transforms",
    "train_transform_detection": "fullfield.data.detection.transforms",
}


def __getattr__(name: str) -> Any:
    return find(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
