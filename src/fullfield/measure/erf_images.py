"""The images that an effective receptive field is averaged over: files, a tensor, or seeded noise.

Files are read one batch at a time, so that memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from fullfield.data import IMAGENET_MEAN, IMAGENET_STD, Preprocess, eval_transform, read_image, sample_path
from fullfield.data.sample import SAMPLE_PREFIX
from fullfield.errors import ConfigError
from fullfield.tasks.answers import find_images

__all__ = ["ImageSource", "Images", "open_images"]

ImageSource = Tensor | str | Path | Sequence[str | Path] | None
"""A tensor (N, C, H, W) that is preprocessed already, files and folders, "sample:NAME", or None for noise."""


@dataclass(frozen=True)
class Images:
    """Images to be read in order, each as the model wants it."""

    count: int
    size: tuple[int, int]
    """(H, W)."""
    description: str
    """What they are, for the picture: "50 images of photos", "noise (seed 0)"."""
    read: Callable[[int], Tensor]
    """Index -> (C, H, W), float32 unless a tensor of another dtype was given."""


def open_images(
    source: ImageSource, preprocess: Preprocess, *, image_size: int | None, count: int, published: bool, seed: int
) -> Images:
    """Find out what the images are.

    Args:
        source: See `ImageSource`.
        preprocess: The model's own; its `image_size` is replaced if `image_size` is given.
        image_size: Side in pixels, None for the model's own. A tensor keeps its own.
        count: At most so many. Of more files, as many are taken at equal distances, so that a folder sorted by class
            gives all classes.
        published: Take the first `count` files, and squeeze each whole image to a square, as RepLKNet's script does.
        seed: Of the noise, which is standard normal.

    Raises:
        ConfigError: The number or the size is impossible, or the tensor is not a batch of images.
        DataError: A path does not exist or holds no image.
    """
    if count < 1:
        raise ConfigError(f"count must be at least 1, got {count}")
    if image_size is not None:
        preprocess = replace(preprocess, image_size=image_size)
    side, channels = preprocess.image_size, preprocess.channels
    if isinstance(source, Tensor):
        return _of_tensor(source, image_size, count, channels)
    if source is None:
        return Images(
            count,
            (side, side),
            f"{count} images of noise (seed {seed}), no real ones",
            lambda index: torch.randn((channels, side, side), generator=_generator(seed, index)),
        )
    files, name = _files(source)
    if published:
        files, transform = files[:count], _published_transform(side, channels)
    else:
        files = [files[i * len(files) // min(count, len(files))] for i in range(min(count, len(files)))]
        transform = eval_transform(preprocess)
    what = f"{len(files)} images of {name}" if len(files) > 1 else files[0].name
    return Images(len(files), (side, side), what, lambda index: transform(read_image(files[index])))


def _of_tensor(source: Tensor, image_size: int | None, count: int, channels: int) -> Images:
    if source.ndim != 4 or not source.is_floating_point() or 0 in source.shape:
        raise ConfigError(
            f"images must be a floating-point tensor (N, {channels}, H, W), got {source.dtype} of shape"
            f" {tuple(source.shape)}"
        )
    H, W = source.shape[2:]
    if image_size is not None and (image_size, image_size) != (H, W):
        raise ConfigError(f"the images are tensors of {H} x {W} pixels: resize them yourself, or leave out image_size")
    taken = min(count, source.shape[0])
    return Images(taken, (H, W), f"{taken} given images", lambda index: source[index])


def _files(source: str | Path | Sequence[str | Path]) -> tuple[list[Path], str]:
    if isinstance(source, str) and source.startswith(SAMPLE_PREFIX):
        return find_images([sample_path(source.removeprefix(SAMPLE_PREFIX))]), source
    paths = [source] if isinstance(source, str | Path) else list(source)
    if len(paths) == 1:
        if str(paths[0]).startswith(SAMPLE_PREFIX):
            return _files(str(paths[0]))
        return find_images(paths), Path(paths[0]).name
    return find_images(paths), f"{len(paths)} paths"


def _published_transform(side: int, channels: int) -> Callable[[Image.Image], Tensor]:
    if channels != 3:
        raise ConfigError(f"the preset replknet is for RGB images, the model takes {channels} channels")
    # the script's own functions: those of v2 divide by 255 with another rounding, which decides ties of maximum pooling
    return transforms.Compose(  # type: ignore[no-any-return]
        [
            transforms.Resize((side, side), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def _generator(seed: int, index: int) -> torch.Generator:
    """Return a generator of one image's own, so that no batch size changes its noise."""
    return torch.Generator().manual_seed(seed * 1_000_003 + index)
