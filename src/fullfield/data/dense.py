"""How whole images are prepared for tasks with an answer for each place: detection and segmentation.

Unlike a classifier's square (`Preprocess`), the picture keeps its shape: it is resized by its sides, never cropped,
and what the net says is given back in the pixels of the original.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from fullfield.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, LUMA, check_keys
from fullfield.errors import ConfigError

__all__ = ["DensePreprocess"]


@dataclass(frozen=True)
class DensePreprocess:
    """What a dense model expects; stored with its weights.

    Attributes:
        short_side: The shorter side is resized to this, pixels; None leaves images at their own size.
        long_side: The longer side does not exceed this, pixels; None for no limit. COCO's usual pair is 800 and 1333.
        window: Side of the square that the net was trained on, pixels; larger images may be looked at through
            sliding windows of it. None where the net sees whole images.
        mean: Of each channel, for values from 0 to 1.
        std: Of each channel.
        channels: 3, or 1 for grey.

    Raises:
        ConfigError: A value is impossible.
    """

    short_side: int | None = None
    long_side: int | None = None
    window: int | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: int = 3

    def __post_init__(self) -> None:
        for name in ("short_side", "long_side", "window"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} is {value!r}; it must be a whole number of pixels, at least 1, or none.")
        if self.short_side is not None and self.long_side is not None and self.long_side < self.short_side:
            raise ConfigError(f"long_side is {self.long_side}, less than short_side {self.short_side}; swap them.")
        if self.channels not in (1, 3):
            raise ConfigError(f"channels is {self.channels}; images have 3, or 1 for grey.")
        for name in ("mean", "std"):
            values = tuple(getattr(self, name))
            if self.channels == 1 and len(values) == 3:
                values = (sum(weight * value for weight, value in zip(LUMA, values, strict=True)),)
            if len(values) != self.channels:
                raise ConfigError(f"{name} has {len(values)} values for {self.channels} channels; give one a channel.")
            object.__setattr__(self, name, values)
        if min(self.std) <= 0:
            raise ConfigError(f"std is {self.std}; every value must be above 0, because it divides.")

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that an image of these is resized to, pixels.

        The scale is the largest that respects both sides, as in torchvision's detectors; each side keeps a pixel.
        """
        if self.short_side is None and self.long_side is None:
            return height, width
        short, long = min(height, width), max(height, width)
        scale = self.short_side / short if self.short_side is not None else 1.0
        if self.long_side is not None:
            scale = min(scale, self.long_side / long)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def to_dict(self) -> dict[str, Any]:
        """Return the values as plain lists and numbers, fit for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DensePreprocess:
        """Build from what `to_dict` returned; keys left out take their default.

        Raises:
            ConfigError: A key is unknown or a value impossible.
        """
        check_keys(values, [field.name for field in fields(cls)])
        return cls(**values)
