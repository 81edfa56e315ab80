"""From a picture and its label map to tensors: the plain way for evaluation, the random one for training.

The random one is that of mmsegmentation's ADE20K and Cityscapes settings: a random scale, a random square that no class
fills, a mirror image, changed colours. All randomness comes from torch's global CPU generator, so that `dataset.py` can
pin it to the image and the epoch. Values stay from 0 to 1: models normalise inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from fullfield.data.dense import DensePreprocess
from fullfield.errors import ConfigError

__all__ = [
    "SegmentationAugment",
    "SegmentationTransform",
    "eval_transform_segmentation",
    "train_transform_segmentation",
]

CROP_TRIES = 10  # as in mmsegmentation

SegmentationTransform = Callable[[Image.Image, Tensor], tuple[Tensor, Tensor]]
"""From an RGB or grey image and its mask (H, W) int64 to a tensor (C, H', W') float32 and a mask (H'', W'') int64."""


@dataclass(frozen=True)
class SegmentationAugment:
    """How training images are varied.

    Attributes:
        scale_low: The image is resized to what `DensePreprocess.resized` says, times at least this,
        scale_high: and at most this; drawn uniformly.
        hflip: Mirror half of the images left to right.
        vflip: Mirror half of the images top to bottom; for pictures without an up, such as micrographs.
        photometric: Probability of each change of brightness, contrast, saturation and hue; 0 is off.
        photometric_strength: Scales these changes; at 1 they are up to 12.5 %, 50 %, 50 % and 36 degrees.
        cat_max: A crop is drawn again, up to 10 times, if it shows one class alone or one class covers at least this
            share of its labelled pixels; 1 takes the first.

    Raises:
        ConfigError: A value is impossible.
    """

    scale_low: float = 0.5
    scale_high: float = 2.0
    hflip: bool = True
    vflip: bool = False
    photometric: float = 0.5
    photometric_strength: float = 1.0
    cat_max: float = 0.75

    def __post_init__(self) -> None:
        for name in ("scale_low", "scale_high", "photometric", "photometric_strength", "cat_max"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ConfigError(f"{name} is {value!r}; it must be a number.")
        if not 0 < self.scale_low <= self.scale_high:
            raise ConfigError(
                f"scale_low is {self.scale_low} and scale_high {self.scale_high}; they must lie above 0, and the first "
                "not above the second."
            )
        if not 0 <= self.photometric <= 1:
            raise ConfigError(f"photometric is {self.photometric}; it is a probability, from 0 to 1.")
        if not 0 <= self.photometric_strength <= 2:
            raise ConfigError(f"photometric_strength is {self.photometric_strength}; it must lie from 0 to 2.")
        if not 0 < self.cat_max <= 1:
            raise ConfigError(f"cat_max is {self.cat_max}; it is a share, above 0 and at most 1.")


def train_transform_segmentation(
    preprocess: DensePreprocess, augment: SegmentationAugment, *, ignore_index: int = 255
) -> SegmentationTransform:
    """Return the random function from image and mask to a square of side S = `preprocess.window` of both.

    What lies beyond a small image is filled with `preprocess.mean` in the picture, which normalising makes 0, and with
    `ignore_index` in the mask.

    Args:
        preprocess: Says the size at scale 1, the window and the channels.
        augment: What is varied, and how much.
        ignore_index: Of the data set.

    Returns:
        A function that gives (C, S, S) float32 from 0 to 1 and (S, S) int64.

    Raises:
        ConfigError: `preprocess.window` is None.
    """
    window = preprocess.window
    if window is None:
        raise ConfigError("window is None; training needs the side of its square crops in pixels, such as 512.")
    return _Train(preprocess, window, augment, ignore_index)


def eval_transform_segmentation(preprocess: DensePreprocess) -> SegmentationTransform:
    """Return the function that resizes the image as `preprocess.resized` says, and leaves the mask as it is.

    Answers are compared with the label map at its own size, so that no figure hangs on how a label map is resized.
    """
    return _Eval(preprocess)


# Classes, not closures: a loader's workers are sent them by pickle where they are not forked.
@dataclass(frozen=True)
class _Eval:
    preprocess: DensePreprocess

    def __call__(self, image: Image.Image, mask: Tensor) -> tuple[Tensor, Tensor]:
        height, width = self.preprocess.resized(image.height, image.width)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return _to_float(tv_tensors.Image(image), self.preprocess.channels), mask


@dataclass(frozen=True)
class _Train:
    preprocess: DensePreprocess
    window: int
    augment: SegmentationAugment
    ignore_index: int

    def __call__(self, image: Image.Image, mask: Tensor) -> tuple[Tensor, Tensor]:
        augment = self.augment
        scale = float(torch.empty(()).uniform_(augment.scale_low, augment.scale_high))
        resized = self.preprocess.resized(image.height, image.width)
        crop, labels = self._draw_crop(mask, (max(1, round(resized[0] * scale)), max(1, round(resized[1] * scale))))
        varied = tv_tensors.Image(crop.of_image(image)), tv_tensors.Mask(labels)
        for step in _steps(augment):
            varied = step(*varied)
        picture = _to_float(varied[0], self.preprocess.channels)
        return _pad(picture, varied[1].as_subclass(Tensor), self.window, self.preprocess.mean, self.ignore_index)

    def _draw_crop(self, mask: Tensor, size: tuple[int, int]) -> tuple[Crop, Tensor]:
        """Draw a crop of the resized image, with the labels in it; see `SegmentationAugment.cat_max`."""
        height, width = (min(side, self.window) for side in size)

        def draw() -> tuple[Crop, Tensor]:
            top, left = (int(torch.randint(max(side - self.window, 0) + 1, ())) for side in size)
            crop = Crop(size, top, left, height, width)
            return crop, crop.of_mask(mask)

        crop, labels = draw()
        if self.augment.cat_max >= 1 or (height, width) == size:
            return crop, labels
        for _ in range(CROP_TRIES):
            counts = torch.bincount(labels[labels != self.ignore_index])
            if int((counts > 0).sum()) > 1 and int(counts.max()) < self.augment.cat_max * int(counts.sum()):
                break
            crop, labels = draw()
        return crop, labels


class Crop(NamedTuple):
    """A part of an image that is resized as a whole; what lies outside of the part is never computed.

    Attributes:
        resized: (height, width) that the whole image is resized to, pixels.
        top: First row of the part in the resized image.
        left: First column.
        height: Of the part; it ends inside the resized image.
        width: Likewise.
    """

    resized: tuple[int, int]
    top: int
    left: int
    height: int
    width: int

    def of_image(self, image: Image.Image) -> Image.Image:
        """Return the part of the image, resized bilinearly with antialiasing."""
        down, across = image.height / self.resized[0], image.width / self.resized[1]
        right, bottom = min((self.left + self.width) * across, image.width), (self.top + self.height) * down
        box = (self.left * across, self.top * down, right, min(bottom, image.height))
        return image.resize((self.width, self.height), Image.Resampling.BILINEAR, box=box)

    def of_mask(self, mask: Tensor) -> Tensor:
        """Return the part of a mask (H, W), each pixel with the label at its centre.

        Torchvision's own resizing of masks takes the pixel's corner, which lies beside the picture by half a pixel.
        """
        rows = _centres(self.top, self.height, mask.shape[0], self.resized[0])
        columns = _centres(self.left, self.width, mask.shape[1], self.resized[1])
        return mask[rows[:, None], columns]


def _centres(start: int, count: int, side: int, resized: int) -> Tensor:
    """Return in which of `side` pixels the centres of `count` pixels out of `resized` lie, in whole numbers."""
    return (2 * torch.arange(start, start + count) + 1) * side // (2 * resized)


def _steps(augment: SegmentationAugment) -> list[v2.Transform]:
    steps: list[v2.Transform] = []
    if augment.hflip:
        steps.append(v2.RandomHorizontalFlip())
    if augment.vflip:
        steps.append(v2.RandomVerticalFlip())
    strength = augment.photometric_strength
    if augment.photometric and strength:
        distort = _PhotometricDistort(
            brightness=(1 - 0.125 * strength, 1 + 0.125 * strength),
            contrast=(1 - 0.5 * strength, 1 + 0.5 * strength),
            saturation=(1 - 0.5 * strength, 1 + 0.5 * strength),
            hue=(-0.1 * strength, 0.1 * strength),
            p=augment.photometric,
        )
        steps.append(distort)
    return steps


class _PhotometricDistort(v2.RandomPhotometricDistort):
    """SSD's distortion without its exchange of channels, as mmsegmentation has it."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {**super().make_params(flat_inputs), "channel_permutation": None}


def _to_float(image: Tensor, channels: int) -> Tensor:
    """Turn uint8 into float32 from 0 to 1, of so many channels."""
    if image.shape[-3] != channels:
        image = F.rgb_to_grayscale(image) if channels == 1 else F.grayscale_to_rgb(image)
    values: Tensor = F.to_dtype(image, torch.float32, scale=True)
    return values.as_subclass(Tensor)


def _pad(image: Tensor, mask: Tensor, window: int, mean: tuple[float, ...], ignore_index: int) -> tuple[Tensor, Tensor]:
    """Fill up to a square at the right and the bottom."""
    height, width = mask.shape
    if (height, width) == (window, window):
        return image.contiguous(), mask.contiguous()
    picture = torch.tensor(mean, dtype=image.dtype)[:, None, None].repeat(1, window, window)
    picture[:, :height, :width] = image
    labels = mask.new_full((window, window), ignore_index)
    labels[:height, :width] = mask
    return picture, labels
