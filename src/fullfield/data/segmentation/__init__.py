"""Label maps of images: reading mask folders, ADE20K and Cityscapes layouts, and making batches of them."""

from fullfield.data.segmentation.dataset import SegmentationBatch, SemanticSegmentation, collate_segmentation
from fullfield.data.segmentation.label_maps import SegmentationData, SegmentationSample
from fullfield.data.segmentation.read import is_segmentation_data, read_segmentation_data
from fullfield.data.segmentation.transforms import (
    SegmentationAugment,
    eval_transform_segmentation,
    train_transform_segmentation,
)

__all__ = [
    "SegmentationAugment",
    "SegmentationBatch",
    "SegmentationData",
    "SegmentationSample",
    "SemanticSegmentation",
    "collate_segmentation",
    "eval_transform_segmentation",
    "is_segmentation_data",
    "read_segmentation_data",
    "train_transform_segmentation",
]
