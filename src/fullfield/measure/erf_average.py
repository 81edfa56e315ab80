"""Averaging a unit's contributions over images, in constant memory, with half the batch where memory runs out.

Images are dealt into at most ten groups by their index, and only each group's sum is kept: the whole mean and the
delete-a-group jackknife come from these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fullfield.errors import ConfigError
from fullfield.measure.erf_gradient import Unit, contributions, is_out_of_memory
from fullfield.measure.erf_images import Images
from fullfield.measure.erf_model import MeasuredModel
from fullfield.measure.erf_statistics import Map, share_outside
from fullfield.progress import console, image_progress

__all__ = ["GROUPS", "Objects", "group_size", "memory_for_one", "sum_by_group"]

GROUPS = 10

Objects = npt.NDArray[np.bool_] | Tensor | Sequence[tuple[float, float, float, float]]
"""Masks (N, H, W), or boxes (left, top, right, bottom), in pixels of the model's input."""


def group_size(group: int, count: int) -> int:
    """Return how many of `count` images are in a group: those whose index leaves that remainder."""
    return len(range(group, count, GROUPS))


@contextmanager
def memory_for_one(size: tuple[int, int]) -> Iterator[None]:
    """Answer a lack of memory in the block, which needs one image at a time at least, with what to do about it.

    Args:
        size: (H, W) of the images.

    Raises:
        ConfigError: Memory did not suffice.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(
            f"memory does not suffice for one image of {size[0]} x {size[1]} pixels; use a smaller image_size"
            " (--image-size), another device, or an earlier layer"
        ) from error


def sum_by_group(
    measured: MeasuredModel,
    unit: Unit,
    images: Images,
    width: int,
    batch_size: int,
    seed: int,
    objects: Objects | None,
) -> tuple[dict[int, Map], list[float]]:
    """Sum the contributions of all images by group.

    Args:
        measured: Its model frozen, see `feature_maps.frozen`.
        unit: Of which to take the gradient.
        images: Read one batch at a time.
        width: Channels of the unit's layer.
        batch_size: Images at a time, to begin with.
        seed: Of the signs.
        objects: Where the object is on each image.

    Returns:
        Group -> sum of its maps, (H, W); and each image's share of mass outside its object, empty without objects.

    Raises:
        ConfigError: The objects do not fit the images, or the unit does not depend on them.
        RuntimeError: Memory does not suffice for one image; see `memory_for_one`.
        CheckpointError: An activation or a gradient is not finite.
        ImageError: An image can't be read.
    """
    masks = None if objects is None else _masks(objects, images)
    groups: dict[int, Map] = {}
    outside: list[float] = []
    with image_progress(f"{measured.name} {unit.layer}", images.count) as advance:
        start = 0
        while start < images.count:
            chunk = range(start, min(start + batch_size, images.count))
            try:
                batch = torch.stack([images.read(index) for index in chunk]).to(measured.device, measured.dtype)
                signs = torch.stack([_signs(seed, index, width) for index in chunk])
                maps = contributions(measured.model, unit, batch, signs).numpy()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or len(chunk) == 1:
                    raise
                batch_size = _halved(len(chunk))
                continue
            for index, one in zip(chunk, maps, strict=True):
                group = index % GROUPS
                groups[group] = groups[group] + one if group in groups else one.copy()
                if masks is not None:
                    outside.append(share_outside(np.abs(one), masks[index]))
            start = chunk.stop
            advance(len(chunk))
    return groups, outside


def _halved(batch: int) -> int:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    console.print(f"out of memory with {batch} images at a time; going on with {batch // 2}", style="yellow")
    return batch // 2


def _signs(seed: int, index: int, width: int) -> Tensor:
    """Return (width,) of +1 and -1 that belong to an image's index."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
    return torch.randint(0, 2, (width,), generator=generator) * 2.0 - 1.0


def _masks(objects: Objects, images: Images) -> npt.NDArray[np.bool_]:
    """Return (N, H, W), True on the objects.

    Raises:
        ConfigError: There are fewer than images, or they are neither masks of the images' size nor boxes.
    """
    given = np.asarray(objects)
    H, W = images.size
    if given.ndim == 2 and given.shape[1:] == (4,):
        left, top, right, bottom = (given[:, i, None, None] for i in range(4))
        rows, columns = np.arange(H)[:, None] + 0.5, np.arange(W)[None, :] + 0.5
        given = (columns > left) & (columns < right) & (rows > top) & (rows < bottom)
    if len(given) < images.count or given.shape[1:] != (H, W):
        raise ConfigError(
            f"objects must be masks ({images.count}, {H}, {W}) or boxes ({images.count}, 4) in pixels of the model's"
            f" input, got shape {np.shape(objects)}"
        )
    return given.astype(bool)
