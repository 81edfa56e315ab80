"""The settings of each head, as a recipe or a run writes them: plain numbers, texts and lists.

Defaults are torchvision's, which are those of the papers, but for 100 detections an image throughout: COCO counts no
more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from fullfield.errors import ConfigError, nearest
from fullfield.ops.dispatch import one_of

__all__ = [
    "FCOSArguments",
    "FasterRCNNArguments",
    "HeadArguments",
    "MaskRCNNArguments",
    "RetinaNetArguments",
]

NORMS = ("none", "group")
LEVELS = 5
_OCTAVE = tuple(tuple(int(size * 2 ** (third / 3)) for third in range(3)) for size in (32, 64, 128, 256, 512))


@dataclass(frozen=True)
class HeadArguments:
    """What every head has.

    Raises:
        ConfigError: A value is impossible.
    """

    fpn_channels: int = 256
    """Of every map of the feature pyramid and of the head's convolutions; 64 gives a light detector."""
    score_threshold: float = 0.05
    """Detections below it are dropped."""
    nms_threshold: float = 0.5
    """Of two boxes of one class that overlap by more than this IoU, only the surer one stays."""
    detections: int = 100
    """At most so many an image."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_threshold"):
                _number(field.name, value, 0, 1)
            elif isinstance(field.default, int):
                _whole(field.name, value)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], head: str) -> Self:
        """Build from plain values; keys left out take their default.

        Args:
            values: By name.
            head: Named in messages.

        Raises:
            ConfigError: A key is unknown or a value impossible.
        """
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                hint = nearest(str(key), known) or f"; it has {', '.join(known)}"
                raise ConfigError(f"unknown head argument {key!r} of {head}{hint}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return all values as plain numbers, texts and lists, fit for JSON and for `from_dict`."""
        return {key: _plain(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class _Anchored(HeadArguments):
    """Heads that correct anchors."""

    anchor_sizes: Sequence[Any] = (32, 64, 128, 256, 512)
    """Of each of the five maps: the square root of the anchors' areas, pixels, one number or a list of them."""
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0)
    """Height by width of the anchors."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = _listed("anchor_sizes", self.anchor_sizes, "one value for each of the five maps")
        levels = [_listed("a value of anchor_sizes", size if _is_list(size) else [size], "a size") for size in sizes]
        if len(levels) != LEVELS or len({len(level) for level in levels}) > 1:
            raise ConfigError(
                f"anchor_sizes is {self.anchor_sizes!r}; give {LEVELS} values, one for each map of the pyramid,"
                " each a number or each a list of as many numbers"
            )
        for size in (size for level in levels for size in level):
            _number("a value of anchor_sizes", size, 0, above=True)
        ratios = _listed("aspect_ratios", self.aspect_ratios, "values such as 0.5, 1 and 2")
        for ratio in ratios:
            _number("a value of aspect_ratios", ratio, 0, above=True)
        object.__setattr__(self, "anchor_sizes", tuple(levels))
        object.__setattr__(self, "aspect_ratios", ratios)


@dataclass(frozen=True)
class RetinaNetArguments(_Anchored):
    """RetinaNet (Lin et al., 2017)."""

    anchor_sizes: Sequence[Any] = _OCTAVE
    """As elsewhere; three a map by default, a third of an octave apart."""
    convs: int = 4
    """3x3 convolutions before each prediction."""
    norm: str = "none"
    """After each of them: "none" (paper) or "group", GroupNorm."""
    candidates: int = 1000
    """The surest predictions of each map that enter non-maximum suppression, at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("norm", self.norm, NORMS)


@dataclass(frozen=True)
class FCOSArguments(HeadArguments):
    """FCOS (Tian et al., 2019), which has no anchors."""

    score_threshold: float = 0.2
    """Of the square root of class score times centre-ness; 0.2 is the paper's 0.05 before the root."""
    nms_threshold: float = 0.6
    """As elsewhere."""
    convs: int = 4
    """3x3 convolutions before each prediction."""
    norm: str = "group"
    """After each of them: "group", GroupNorm (paper), or "none"."""
    candidates: int = 1000
    """The surest predictions of each map that enter non-maximum suppression, at most."""
    centre_radius: float = 1.5
    """Places so many strides from an object's centre, at most, learn to find it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("norm", self.norm, NORMS)
        _number("centre_radius", self.centre_radius, 0, above=True)


@dataclass(frozen=True)
class FasterRCNNArguments(_Anchored):
    """Faster R-CNN (Ren et al., 2015) and Cascade R-CNN (Cai and Vasconcelos, 2018)."""

    box_features: int = 1024
    """Width of the two linear layers of each box head."""
    train_proposals: int = 2000
    """Regions that the proposal network passes on in training: of each map before non-maximum suppression, of the
    whole image after it."""
    proposals: int = 1000
    """The same when predicting."""
    sampled_regions: int = 512
    """Regions of an image that the box head learns from, a quarter of them objects where there are enough."""


@dataclass(frozen=True)
class MaskRCNNArguments(FasterRCNNArguments):
    """Mask R-CNN (He et al., 2017) and Cascade Mask R-CNN."""

    mask_features: int = 256
    """Width of the five convolutions of each mask head."""


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _listed(name: str, value: Any, advice: str) -> tuple[Any, ...]:
    if not _is_list(value) or not value:
        raise ConfigError(f"{name} is {value!r}; give a list of {advice}")
    return tuple(value)


def _whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number, at least 1")


def _number(name: str, value: Any, low: float, high: float = float("inf"), *, above: bool = False) -> None:
    fits = not isinstance(value, bool) and isinstance(value, (int, float)) and low <= value <= high
    if not fits or (above and value == low):
        bounds = f"above {low}" if above else f"from {low} to {high}"
        raise ConfigError(f"{name} is {value!r}; it must be a number {bounds}")


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if _is_list(value) else value
