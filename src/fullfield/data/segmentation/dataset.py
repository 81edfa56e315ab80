"""Images and label maps with the randomness that a seed fixes, as `fullfield.data.dataset` does it for classification.

A pair of which one cannot be read, or that do not fit together, is returned as `Unreadable` and not raised: one broken
file must not end a run, and whoever trains counts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fullfield.data.dataset import SampleKey, Unreadable, seeded
from fullfield.data.dense import DensePreprocess
from fullfield.data.image_data import Sample
from fullfield.data.order import mix
from fullfield.data.place import read_sample
from fullfield.data.segmentation.label_image import LabelCode, read_label_map
from fullfield.data.segmentation.label_maps import SegmentationData, SegmentationSample
from fullfield.data.segmentation.transforms import SegmentationTransform, eval_transform_segmentation
from fullfield.errors import ConfigError, ImageError

__all__ = ["SegmentationBatch", "SemanticSegmentation", "collate_segmentation"]


class SegmentationBatch(NamedTuple):
    """A batch of B images.

    Attributes:
        images: (B, C, H, W) float32, from 0 to 1. If not one pair of the batch was readable, (0, 0, 0, 0): ask
            `len(batch.indices)` before use.
        masks: (B, H', W') int64 labels with `ignore_index`; in training H' = H, in evaluation the label map's own size.
        indices: (B,) int64, positions in the list of samples.
        unreadable: What was left out of this batch.
    """

    images: Tensor
    masks: Tensor
    indices: Tensor
    unreadable: tuple[Unreadable, ...]


Item = tuple[Tensor, Tensor, int]


class SemanticSegmentation(Dataset[Item | Unreadable]):
    """Images with label maps, read and transformed one at a time.

    Args:
        samples: Paths, such as one of `data.splits`.
        data: Says what the values of the label maps mean.
        transform: From image and mask to tensors; None leaves both at their own size.
        channels: 3, or 1 to read images as grey.
        seed: Together with a `SampleKey`, fixes the random part of `transform`.

    Raises:
        ConfigError: `channels` is neither.
    """

    def __init__(
        self,
        samples: Sequence[SegmentationSample],
        data: SegmentationData,
        transform: SegmentationTransform | None = None,
        *,
        channels: int = 3,
        seed: int = 0,
    ) -> None:
        if channels not in (1, 3):
            raise ConfigError(f"channels is {channels}; images are read with 3, or 1 for grey.")
        self.samples = samples
        self.code = LabelCode.of(data)  # without the lists of files, which every worker would be sent again
        self.transform = transform or eval_transform_segmentation(DensePreprocess(channels=channels))
        self.channels = channels
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | SampleKey) -> Item | Unreadable:
        """Return (image (C, H, W), mask (H', W'), index), or what went wrong in reading.

        With a `SampleKey`, the transform's randomness depends on (seed, epoch, index, copy) alone and torch's global
        generator is afterwards as it was before. With a plain index, it comes from that generator.
        """
        index = key.index if isinstance(key, SampleKey) else key
        sample = self.samples[index]
        path = sample.path
        try:
            picture = read_sample(Sample(path, 0, sample.place))
            path = sample.mask
            labels = read_label_map(path, self.code, size=picture.size)
        except ImageError as error:
            return Unreadable(str(path), str(error).removeprefix(f"{path}: "))
        image, mask = picture.convert("L") if self.channels == 1 else picture, torch.from_numpy(labels)
        if not isinstance(key, SampleKey):
            return *self.transform(image, mask), index
        place = (key.epoch, key.index, key.copy) if key.copy else (key.epoch, key.index)
        with seeded(mix(self.seed, "sample", *place)):
            return *self.transform(image, mask), index


def collate_segmentation(items: Sequence[Item | Unreadable]) -> SegmentationBatch:
    """Stack what `SemanticSegmentation` returned into a batch; what was unreadable is listed apart.

    Raises:
        ConfigError: Images or masks differ in size, as they do without a training transform.
    """
    unreadable = tuple(item for item in items if isinstance(item, Unreadable))
    readable = [item for item in items if not isinstance(item, Unreadable)]
    images, masks = [image for image, _, _ in readable], [mask for _, mask, _ in readable]
    for what, tensors in (("images", images), ("masks", masks)):
        sizes = sorted({tuple(tensor.shape[-2:]) for tensor in tensors})
        if len(sizes) > 1:
            raise ConfigError(
                f"The {what} of a batch have the sizes {sizes} (height, width); evaluate in batches of one, or give a "
                "training transform, which cuts squares of one size."
            )
    indices = torch.tensor([index for _, _, index in readable], dtype=torch.int64)
    if not readable:
        return SegmentationBatch(torch.empty(0, 0, 0, 0), torch.empty(0, 0, 0, dtype=torch.int64), indices, unreadable)
    return SegmentationBatch(torch.stack(images), torch.stack(masks), indices, unreadable)
