"""Images and labels in the order and with the randomness that a seed fixes, whatever the number of workers.

The sampler hands out (epoch, index) pairs, and the data set draws an image's augmentation from (seed, epoch,
index) alone. So an epoch has the same pictures with 0 or 8 workers, after a resume in its middle, and in any
order. An image that cannot be read is returned as `Unreadable` and not raised: one broken file in a million
must not end a run, and whoever trains counts them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from fullfield.data.image_data import Sample
from fullfield.data.order import epoch_order, mix
from fullfield.data.place import read_sample
from fullfield.errors import ConfigError, ImageError

__all__ = ["EpochSampler", "ImageBatch", "ImageClassification", "SampleKey", "Unreadable", "collate", "seeded"]


class SampleKey(NamedTuple):
    """Which image, in which epoch, and which of its copies there."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a key
    copy: int = 0


class Unreadable(NamedTuple):
    """An image that could not be read, and why."""

    path: str
    reason: str


class ImageBatch(NamedTuple):
    """A batch of B images of side S.

    Attributes:
        images: (B, C, S, S) float32. If not one image of the batch was readable, (0, 0, 0, 0): ask
            `len(batch.labels)` before use.
        labels: (B,) int64.
        indices: (B,) int64, positions in the list of samples.
        unreadable: The images left out of this batch.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    unreadable: tuple[Unreadable, ...]


Item = tuple[Tensor, int, int]


class ImageClassification(Dataset[Item | Unreadable]):
    """Labelled images, read and transformed one at a time.

    Args:
        samples: Paths and labels.
        transform: From an upright RGB image to a tensor (C, S, S).
        seed: Together with a `SampleKey`, fixes the random part of `transform`.
        min_side: If given, a JPEG may be decoded at a reduced scale down to this shorter side, see
            `read_image`.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        transform: Callable[[Image.Image], Tensor],
        *,
        seed: int = 0,
        min_side: int | None = None,
    ) -> None:
        self.samples = samples
        self.transform = transform
        self.seed = seed
        self.min_side = min_side

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | SampleKey) -> Item | Unreadable:
        """Return (image (C, S, S), label, index), or what went wrong in reading.

        With a `SampleKey`, the transform's randomness depends on (seed, epoch, index) alone and torch's
        global generator is afterwards as it was before. With a plain index, it comes from that generator.
        """
        index = key.index if isinstance(key, SampleKey) else key
        sample = self.samples[index]
        try:
            image = read_sample(sample, min_side=self.min_side)
        except ImageError as error:
            path = str(sample.path)
            return Unreadable(path, str(error).removeprefix(f"{path}: "))
        if not isinstance(key, SampleKey):
            return self.transform(image), sample.label, index
        place = (key.epoch, key.index, key.copy) if key.copy else (key.epoch, key.index)
        with seeded(mix(self.seed, "sample", *place)):
            return self.transform(image), sample.label, index


def collate(items: Sequence[Item | Unreadable]) -> ImageBatch:
    """Stack what `ImageClassification` returned into a batch; what was unreadable is listed apart."""
    unreadable = tuple(item for item in items if isinstance(item, Unreadable))
    readable = [item for item in items if not isinstance(item, Unreadable)]
    images = [image for image, _, _ in readable]
    return ImageBatch(
        torch.stack(images) if images else torch.empty(0, 0, 0, 0),
        torch.tensor([label for _, label, _ in readable], dtype=torch.int64),
        torch.tensor([index for _, _, index in readable], dtype=torch.int64),
        unreadable,
    )


class EpochSampler(Sampler[SampleKey]):
    """The images of one epoch in an order that (seed, epoch) fixes, divided among processes.

    Each index comes once over all ranks. With `shuffle`, where training needs equally many steps on every
    rank, indices from the start of the order fill up the last round; without, for evaluation, nothing comes
    twice and ranks may differ by one image. Taken in batches of `batch` / `world_size`, the ranks' batches
    together are the batches of a single process: how many processes share the work does not change it.

    Args:
        length: Number of images.
        shuffle: Another order in every epoch; otherwise ascending.
        seed: Another seed gives other orders.
        rank: Which of the processes this is.
        world_size: How many processes share the images.
        batch: Images of a step over all ranks; what is left at the end of an epoch after whole steps is left out.
            A data set of less than one step is not cut.
        repeats: Repeated augmentation (Hoffer et al. 2020): each image of the order comes so many times in a row,
            varied differently, and the epoch ends when it has as many images as without.
        blocks: Ranges of images that are cheap to read together, see `epoch_order`.

    Raises:
        ConfigError: `rank` is not one of `world_size`, or a number is too small.
    """

    def __init__(
        self,
        length: int,
        *,
        shuffle: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        batch: int = 1,
        repeats: int = 1,
        blocks: Sequence[range] | None = None,
    ) -> None:
        if length < 0:
            raise ConfigError(f"length is {length}; give the number of images.")
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank is {rank} of world_size {world_size}; ranks count from 0 to world_size - 1.")
        if batch < 1 or repeats < 1:
            raise ConfigError(f"batch is {batch} and repeats {repeats}; both are at least 1.")
        self.length = length
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.repeats = repeats
        self.blocks = blocks
        self.total = length if length < batch else length - length % batch
        self.epoch = 0
        self._start = (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        self.epoch = epoch

    def start_at(self, epoch: int, taken: int) -> None:
        """Choose the epoch, and leave out the first `taken` images of this rank in it; `len` still counts them."""
        self.epoch = epoch
        self._start = (epoch, taken)

    def __len__(self) -> int:
        if self.shuffle:
            return -(-self.total // self.world_size)
        return len(range(self.rank, self.total, self.world_size))

    def __iter__(self) -> Iterator[SampleKey]:
        epoch = self.epoch
        order = self._order(epoch)
        start = self._start[1] if epoch == self._start[0] else 0
        for turn in range(start, len(self)):
            place = (self.rank + turn * self.world_size) % self.total
            yield SampleKey(epoch, order[place // self.repeats], place % self.repeats)

    def _order(self, epoch: int) -> Sequence[int]:
        if not self.shuffle:
            return range(self.length)
        return epoch_order(self.length, seed=self.seed, epoch=epoch, blocks=self.blocks)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global CPU generator, and restore it afterwards.

    `torch.manual_seed` would seed the accelerators as well, and their state would not come back.
    """
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
