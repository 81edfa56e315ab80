"""Reading images and lists of images, and turning them into batches; knows no model."""

from fullfield.data.arrow import read_arrow
from fullfield.data.csv_list import read_csv
from fullfield.data.dataset import (
    EpochSampler,
    ImageBatch,
    ImageClassification,
    SampleKey,
    Unreadable,
    collate,
)
from fullfield.data.folder import read_folder
from fullfield.data.image import IMAGE_EXTENSIONS, MAX_PIXELS, decode_image, read_image
from fullfield.data.image_list import ImageData, Sample, read_image_data
from fullfield.data.order import epoch_order
from fullfield.data.parquet import read_parquet
from fullfield.data.place import open_sample, read_sample
from fullfield.data.sample import sample_names, sample_path
from fullfield.data.shards import read_shards
from fullfield.data.split import stratified_split
from fullfield.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augment,
    Preprocess,
    eval_transform,
    train_transform,
)

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
