"""Pictures with objects, read and varied one at a time, with the randomness that a seed fixes.

What `data/dataset.py` says of images and labels holds here as well: the sampler hands out `SampleKey`s, a picture's
augmentation depends on (seed, epoch, index, copy) alone, and a picture that cannot be used is returned as
`Unreadable`. Copy-paste and mosaic draw their other pictures from the same randomness. One of those that cannot be
read is done without; it is reported when its own turn comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from fullfield.data.dataset import SampleKey, Unreadable, seeded
from fullfield.data.detection.objects import DetectionSample
from fullfield.data.detection.transforms import (
    DetectionTrainTransform,
    Target,
    Transform,
    eval_transform_detection,
)
from fullfield.data.order import mix
from fullfield.data.place import read_sample
from fullfield.errors import ConfigError, DataError, ImageError

__all__ = ["DetectionBatch", "DetectionItem", "ObjectDetection", "OutlineMasks", "collate_detection"]

DetectionItem = tuple[Tensor, Target, int]
"""Image (C, H, W) float32 from 0 to 1, its target, and the position of its sample."""


class DetectionBatch(NamedTuple):
    """A batch of B pictures, each of its own size.

    Attributes:
        images: B images (C, H, W) float32, 0 to 1. Empty if not one picture of the batch could be used.
        targets: Of each image: boxes (N, 4) float32 in its pixels, labels (N,) int64, crowd (N,) bool and, if they were
            asked for, masks (N, H, W) uint8.
        indices: (B,) int64, positions in the list of samples.
        unreadable: The pictures left out of this batch.
    """

    images: tuple[Tensor, ...]
    targets: tuple[Target, ...]
    indices: Tensor
    unreadable: tuple[Unreadable, ...]


class OutlineMasks:
    """The masks of one sample, decoded from their outlines when they are looked at.

    Args:
        sample: A sample whose objects have outlines, or which has no objects.
    """

    def __init__(self, sample: DetectionSample) -> None:
        self.sample = sample

    def __len__(self) -> int:
        return len(self.sample.objects)

    def __getitem__(self, index: int, /) -> Tensor:
        """Return the mask of object `index`, (H, W) uint8, 1 inside.

        Raises:
            DataError: The outline is broken; the message names the annotation.
        """
        from fullfield.data.detection.outlines import outline_to_mask  # only masks need its extra

        objects = self.sample.objects
        assert objects.masks is not None  # noqa: S101 - checked by whoever asks for masks
        try:
            mask = outline_to_mask(objects.masks[index], self.sample.height, self.sample.width)
        except (DataError, ValueError) as error:
            raise DataError(f"annotation {objects.ids[index]}: its outline cannot be used ({error}).") from error
        return torch.from_numpy(mask.astype("uint8"))


class ObjectDetection(Dataset[DetectionItem | Unreadable]):
    """Pictures with objects, read and transformed one at a time.

    Args:
        samples: Files with their objects.
        transform: From a picture and its target to a tensor and its target, see `transforms.py`. None for evaluation:
            the picture at its own size, the target unchanged.
        channels: 3, or 1 to read pictures as grey.
        masks: Give masks, too. They take a byte for each object and pixel.
        seed: Together with a `SampleKey`, fixes the random part of `transform`.

    Raises:
        ConfigError: `channels` is neither 1 nor 3, or `transform` pastes objects and `masks` is off.
        DataError: `masks` is on and a sample has objects without outlines.
    """

    def __init__(
        self,
        samples: Sequence[DetectionSample],
        transform: Transform | None = None,
        *,
        channels: int = 3,
        masks: bool = False,
        seed: int = 0,
    ) -> None:
        if channels not in (1, 3):
            raise ConfigError(f"channels is {channels}; pictures are read with 3, or 1 for grey.")
        if masks:
            for sample in samples:
                if len(sample.objects) and sample.objects.masks is None:
                    raise DataError(
                        f"{sample.path}: masks are asked for, and its {len(sample.objects)} objects have boxes alone. "
                        "Use data with outlines, or a head without masks."
                    )
        elif isinstance(transform, DetectionTrainTransform) and transform.augment.copy_paste > 0:
            raise ConfigError("copy_paste needs masks, and masks is off; turn masks on, or set copy_paste to 0.")
        self.samples = samples
        self.transform: Transform = eval_transform_detection if transform is None else transform
        self.channels = channels
        self.masks = masks
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | SampleKey) -> DetectionItem | Unreadable:
        """Return (image (C, H, W), target, index), or what is wrong with the picture.

        A picture whose upright size is not the annotated one is `Unreadable`: its boxes would be somewhere else.
        With a `SampleKey`, the randomness depends on (seed, epoch, index, copy) alone and torch's global generator is
        afterwards as it was before. With a plain index, it comes from that generator.
        """
        if not isinstance(key, SampleKey):
            return self._item(key)
        place = (key.epoch, key.index, key.copy) if key.copy else (key.epoch, key.index)
        with seeded(mix(self.seed, "sample", *place)):
            return self._item(key.index)

    def _item(self, index: int) -> DetectionItem | Unreadable:
        path = str(self.samples[index].path)
        try:
            image, target = self._read(index)
            if isinstance(self.transform, DetectionTrainTransform) and self.transform.mixes:
                return *self.transform(image, target, lambda: self._another(index)), index
            return *self.transform(image, target), index
        except (ImageError, DataError) as error:
            return Unreadable(path, str(error).removeprefix(f"{path}: "))

    def _another(self, index: int) -> tuple[Image.Image, dict[str, Any]] | None:
        """Read a picture other than `index`, drawn at random; None if there is none or it cannot be read."""
        if len(self.samples) < 2:
            return None
        drawn = int(torch.randint(len(self.samples) - 1, ()))
        try:
            return self._read(drawn + (drawn >= index % len(self.samples)))
        except ImageError:
            return None

    def _read(self, index: int) -> tuple[Image.Image, dict[str, Any]]:
        sample = self.samples[index]
        image = read_sample(sample)
        if image.size != (sample.width, sample.height):
            raise ImageError(
                f"{sample.path}: is {image.width} × {image.height} pixels upright, but was annotated as "
                f"{sample.width} × {sample.height}. Annotate this file, or put back the one that was annotated."
            )
        if self.channels == 1:
            image = image.convert("L")
        objects = sample.objects
        target: dict[str, Any] = {  # copies: what is done to a batch must not change the data set
            "boxes": torch.tensor(objects.boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor(objects.labels, dtype=torch.int64),
            "crowd": torch.tensor(objects.crowd, dtype=torch.bool),
        }
        if self.masks:
            target["masks"] = OutlineMasks(sample)
        return image, target


def collate_detection(items: Sequence[DetectionItem | Unreadable]) -> DetectionBatch:
    """Put what `ObjectDetection` returned into a batch; what could not be used is listed apart."""
    readable = [item for item in items if not isinstance(item, Unreadable)]
    return DetectionBatch(
        tuple(image for image, _, _ in readable),
        tuple(target for _, target, _ in readable),
        torch.tensor([index for _, _, index in readable], dtype=torch.int64),
        tuple(item for item in items if isinstance(item, Unreadable)),
    )
