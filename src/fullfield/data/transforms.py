"""From an RGB picture to the tensor a network takes: the plain way for evaluation, the random one for training.

`Preprocess` says what a network expects; `Augment` belongs to the training run alone. Everything is made of
torchvision's `transforms.v2` on Pillow images, whose resizing is always antialiased. All randomness comes from torch's
global CPU generator, so that `dataset.py` can pin it to the image and the epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from fullfield.data.preprocess import INTERPOLATIONS, Preprocess, ResizedCentre, is_number, is_whole
from fullfield.errors import ConfigError

__all__ = ["Augment", "eval_transform", "train_transform"]

RAND_AUGMENT_BINS = 31  # magnitudes from 0 to 30, as in the paper

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Augment:
    """How training images are varied.

    Attributes:
        scale_min: The random crop covers at least this share of the image's area.
        hflip: Mirror half of the images left to right.
        vflip: Mirror half of the images top to bottom; for pictures without an up, such as micrographs.
        rand_augment: Magnitude of RandAugment (Cubuk et al. 2020), two operations an image; 0 is off.
        erasing: Probability of erasing a random rectangle (Zhong et al. 2020).

    Raises:
        ConfigError: A value is impossible.
    """

    scale_min: float = 0.35
    hflip: bool = True
    vflip: bool = False
    rand_augment: int = 0
    erasing: float = 0.0

    def __post_init__(self) -> None:
        if not is_number(self.scale_min) or not 0 < self.scale_min <= 1:
            raise ConfigError(f"scale_min is {self.scale_min!r}; it must lie above 0 and be at most 1.")
        if not is_whole(self.rand_augment) or not 0 <= self.rand_augment < RAND_AUGMENT_BINS:
            raise ConfigError(
                f"rand_augment is {self.rand_augment!r}; it must be a whole number from 0 (off) to "
                f"{RAND_AUGMENT_BINS - 1}."
            )
        if not is_number(self.erasing) or not 0 <= self.erasing <= 1:
            raise ConfigError(f"erasing is {self.erasing!r}; it is a probability, from 0 to 1.")


def eval_transform(p: Preprocess) -> Transform:
    """Return the function from an RGB image of any size to a float32 tensor (channels, S, S), S = image_size.

    The shorter side is resized to `image_size / crop_share`, the central square cut and normalised.
    """
    crop = ResizedCentre(p.image_size, round(p.image_size / p.crop_share), INTERPOLATIONS[p.interpolation])
    return _compose([crop, *_to_tensor(p), v2.ToPureTensor()])


def train_transform(p: Preprocess, a: Augment) -> Transform:
    """Return the random function from an RGB image of any size to a float32 tensor (channels, S, S).

    A random crop of random shape is resized to S = image_size, then mirrored, varied by RandAugment,
    normalised, and a rectangle of it erased (to the mean), as far as `a` says so.
    """
    interpolation = v2.InterpolationMode(p.interpolation)
    steps: list[Callable[..., Any]] = [
        v2.RandomResizedCrop(p.image_size, scale=(a.scale_min, 1.0), interpolation=interpolation, antialias=True)
    ]
    if a.hflip:
        steps.append(v2.RandomHorizontalFlip())
    if a.vflip:
        steps.append(v2.RandomVerticalFlip())
    if a.rand_augment:
        steps.append(v2.RandAugment(num_ops=2, magnitude=a.rand_augment, num_magnitude_bins=RAND_AUGMENT_BINS))
    steps += _to_tensor(p)
    if a.erasing:
        steps.append(v2.RandomErasing(p=a.erasing))
    return _compose([*steps, v2.ToPureTensor()])


def _to_tensor(p: Preprocess) -> list[Callable[..., Any]]:
    grey = [v2.Grayscale(1)] if p.channels == 1 else []
    return [*grey, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(p.mean), list(p.std))]


def _compose(steps: list[Callable[..., Any]]) -> Transform:
    composed: Transform = v2.Compose(steps)
    return composed
