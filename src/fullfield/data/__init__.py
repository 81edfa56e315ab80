"""Reading images and lists of images, and turning them into batches; knows no model."""

from typing import TYPE_CHECKING, Any

from fullfield.data.image import IMAGE_EXTENSIONS, MAX_PIXELS, decode_image, read_image
from fullfield.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from fullfield.data.sample import sample_names, sample_path
from fullfield.lazy import find

if TYPE_CHECKING:
    from fullfield.data.arrow import read_arrow
    from fullfield.data.csv_list import read_csv
    from fullfield.data.dataset import EpochSampler, ImageBatch, ImageClassification, SampleKey, Unreadable, collate
    from fullfield.data.folder import read_folder
    from fullfield.data.image_list import ImageData, Sample, read_image_data
    from fullfield.data.order import epoch_order
    from fullfield.data.parquet import read_parquet
    from fullfield.data.place import open_sample, read_sample
    from fullfield.data.shards import read_shards
    from fullfield.data.split import stratified_split
    from fullfield.data.transforms import Augment, eval_transform, train_transform

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "IMAGE_EXTENSIONS",
    "MAX_PIXELS",
    "Augment",
    "EpochSampler",
    "ImageBatch",
    "ImageClassification",
    "ImageData",
    "Preprocess",
    "Sample",
    "SampleKey",
    "Unreadable",
    "collate",
    "decode_image",
    "epoch_order",
    "eval_transform",
    "open_sample",
    "read_arrow",
    "read_csv",
    "read_folder",
    "read_image",
    "read_image_data",
    "read_parquet",
    "read_sample",
    "read_shards",
    "sample_names",
    "sample_path",
    "stratified_split",
    "train_transform",
]

_HOMES = {
    "read_arrow": "fullfield.data.arrow",
    "read_csv": "fullfield.data.csv_list",
    "EpochSampler": "fullfield.data.dataset",
    "ImageBatch": "fullfield.data.dataset",
    "ImageClassification": "fullfield.data.dataset",
    "SampleKey": "fullfield.data.dataset",
    "Unreadable": "fullfield.data.dataset",
    "collate": "fullfield.data.dataset",
    "read_folder": "fullfield.data.folder",
    "ImageData": "fullfield.data.image_list",
    "Sample": "fullfield.data.image_list",
    "read_image_data": "fullfield.data.image_list",
    "epoch_order": "fullfield.data.order",
    "read_parquet": "fullfield.data.parquet",
    "open_sample": "fullfield.data.place",
    "read_sample": "fullfield.data.place",
    "read_shards": "fullfield.data.shards",
    "stratified_split": "fullfield.data.split",
    "Augment": "fullfield.data.transforms",
    "eval_transform": "fullfield.data.transforms",
    "train_transform": "fullfield.data.transforms",
}


def __getattr__(name: str) -> Any:
    return find(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
