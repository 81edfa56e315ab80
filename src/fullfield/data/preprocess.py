"""How a classifier wants its images, and the one way to cut the square that it sees; needs no PyTorch.

`Preprocess` is stored with the weights, because a network must be fed as it was trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from PIL import Image

from fullfield.errors import ConfigError, nearest

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "INTERPOLATIONS",
    "LUMA",
    "Preprocess",
    "ResizedCentre",
    "check_keys",
    "is_number",
    "is_whole",
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
        if not is_whole(self.image_size) or self.image_size < 1:
            raise ConfigError(f"image_size is {self.image_size!r}; it must be a whole number of pixels, at least 1.")
        if not is_number(self.crop_share) or not 0 < self.crop_share <= 1:
            raise ConfigError(f"crop_share is {self.crop_share!r}; it must lie above 0 and be at most 1.")
        if self.interpolation not in INTERPOLATIONS:
            raise ConfigError(
                f"interpolation is {self.interpolation!r}{nearest(str(self.interpolation), INTERPOLATIONS) or '.'} "
                f"Use one of {', '.join(INTERPOLATIONS)}."
            )
        if not is_whole(self.channels) or self.channels not in (1, 3):
            raise ConfigError(f"channels is {self.channels!r}; images are read with 3 channels, or 1 for grey.")
        for name, of_imagenet in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            values = getattr(self, name)
            if not isinstance(values, (tuple, list)) or not all(is_number(value) for value in values):
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
        check_keys(values, [field.name for field in fields(cls)])
        return cls(**values)


def check_keys(values: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse stored preprocessing with a key that is not known.

    Raises:
        ConfigError: There is one; the message has the nearest.
    """
    for key in values:
        if key not in known:
            hint = nearest(str(key), known) or "."
            raise ConfigError(f"Unknown preprocessing key {key!r}{hint} The keys are {', '.join(known)}.")


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


def is_whole(value: object) -> bool:
    """Whether a value is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a finite number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
