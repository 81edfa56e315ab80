"""Label maps of images: reading mask folders, ADE20K and Cityscapes layouts, and making batches of them."""

from typing import TYPE_CHECKING, Any

from fullfield.lazy import find

if TYPE_CHECKING:
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

_HOMES = {
    "SegmentationBatch": "fullfield.data.segmentation.dataset",
    "SemanticSegmentation": "fullfield.data.segmentation.dataset",
    "collate_segmentation": "fullfield.data.segmentation.dataset",
    "SegmentationData": "fullfield.data.segmentation.label_maps",
    "SegmentationSample": "fullfield.data.segmentation.label_maps",
    "is_segmentation_data": "fullfield.data.segmentation.read",
    "read_segmentation_data": "fullfield.data.segmentation.read",
    "SegmentationAugment": "fullfield.data.segmentation.transforms",
    "eval_transform_segmentation": "fullfield.data.segmentation.transforms",
    "train_transform_segmentation": "fullfield.data.segmentation.transforms",
}


def __getattr__(name: str) -> Any:
    return find(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
