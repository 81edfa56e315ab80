"""Objects in images: reading COCO, Pascal VOC and YOLO annotations, and making batches of them."""

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
