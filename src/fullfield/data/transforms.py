"""From an RGB picture to the tensor a network takes: the plain way for evaluation, the random one for training.

`Preprocess` is stored with the weights, because a network must be fed as it was trained. `Augment` belongs
to the training run alone. Everything is made of torchvision's `transforms.v2` on Pillow images, whose
resizing is always antialiased. All randomness comes from torch's global CPU generator, so that
`dataset.py` can pin it to the image and the epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from fullfield.errors import ConfigError, nearest

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Augment",
    "Preprocess",
    "ResizedCentre",
    "eval_transform",
    "train_transform",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# The weights by which Pillow and torchvision turn RGB into grey (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)
# Nearest is left out: it is not antialiased.
INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
RAND_AUGMENT_BINS = 31  # magnitudes from 0 to 30, as in the paper

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Preprocess:
    """How a network wants its images.

    Attributes:
        image_size: Side of the square input in pixels.
        crop_share: For evaluation the shorter side becomes `image_size / crop_share`, of which the centre is
            taken.
        mean: Subtracted from values in [0, 1], one number a channel.
        std: Divides what remains, one number a channel.
        interpolation: "bilinear", "bicubic" or "lanczos".
        channels: 3, or 1 for grey; with 1, ImageNet's mean and std become their luminance.

    Raises:
        ConfigError: A value is impossible.
    """

    image_size: int = 224
    crop_share: float = 0.95
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    channels: int = 3

    def __post_init__(self) -> None:
        if not _is_int(self.image_size) or self.image_size < 1:
            raise ConfigError(f"image_size is {self.image_size!r}; it must be a whole number of pixels, at least 1.")
        if not _is_number(self.crop_share) or not 0 < self.crop_share <= 1:
            raise ConfigError(f"crop_share is {self.crop_share!r}; it must lie above 0 and be at most 1.")
        if self.interpolation not in INTERPOLATIONS:
            raise ConfigError(
                f"interpolation is {self.interpolation!r}{nearest(str(self.interpolation), INTERPOLATIONS) or '.'} "
                f"Use one of {', '.join(INTERPOLATIONS)}."
            )
        if not _is_int(self.channels) or self.channels not in (1, 3):
            raise ConfigError(f"channels is {self.channels!r}; images are read with 3 channels, or 1 for grey.")
        for name, of_imagenet in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            values = getattr(self, name)
            if not isinstance(values, (tuple, list)) or not all(_is_number(value) for value in values):
                raise ConfigError(f"{name} is {values!r}; it must be a list of numbers, one a channel.")
            values = tuple(float(value) for value in values)
            if self.channels == 1 and values == of_imagenet:
                values = (sum(weight * value for weight, value in zip(LUMA, values, strict=True)),)
            if len(values) != self.channels:
                raise ConfigError(f"{name} has {len(values)} values for {self.channels} channels; give one a channel.")
            object.__setattr__(self, name, values)
        if min(self.std) <= 0:
            raise ConfigError(f"std is {self.std}; every value must be above 0, because it divides.")

    def to_dict(self) -> dict[str, Any]:
        """Return the values as plain lists, numbers and strings, fit for JSON and YAML."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """Build from what `to_dict` returned; keys left out take their default.

        Raises:
            ConfigError: A key is unknown or a value impossible.
        """
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(
                    f"Unknown preprocessing key {key!r}{nearest(str(key), known) or '.'} "
                    f"The keys are {', '.join(known)}."
                )
        return cls(**values)


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
        if not _is_number(self.scale_min) or not 0 < self.scale_min <= 1:
            raise ConfigError(f"scale_min is {self.scale_min!r}; it must lie above 0 and be at most 1.")
        if not _is_int(self.rand_augment) or not 0 <= self.rand_augment < RAND_AUGMENT_BINS:
            raise ConfigError(
                f"rand_augment is {self.rand_augment!r}; it must be a whole number from 0 (off) to "
                f"{RAND_AUGMENT_BINS - 1}."
            )
        if not _is_number(self.erasing) or not 0 <= self.erasing <= 1:
            raise ConfigError(f"erasing is {self.erasing!r}; it is a probability, from 0 to 1.")


@dataclass(frozen=True)
class ResizedCentre:
    """Resize the shorter side to `resized_side` and cut the central square, in one step.

    The geometry is that of torchvision's `Resize` followed by `CenterCrop`, roundings included. Only the
    pixels that the square needs are resized, so that an image of 30000 × 10 pixels takes no more memory than
    any other; the resized whole would have 170 million pixels.

    Attributes:
        side: Side of the square in pixels.
        resized_side: What the shorter side of the whole image becomes; at least `side`.
        resampling: Pillow's filter.
    """

    side: int
    resized_side: int
    resampling: Image.Resampling

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the square as a new image of the same mode."""
        short = min(image.size)
        box_start, box_end = [], []
        for length in image.size:
            resized = int(self.resized_side * length / short)
            start = int(round((resized - self.side) / 2))  # noqa: RUF046 - as torchvision writes it
            box_start.append(start * length / resized)
            box_end.append((start + self.side) * length / resized)
        box = (box_start[0], box_start[1], min(box_end[0], image.width), min(box_end[1], image.height))
        return image.resize((self.side, self.side), self.resampling, box=box)


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


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
