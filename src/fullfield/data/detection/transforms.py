"""From a picture with objects to what a detector trains on: scale jitter, crops, flips, copy-paste, mosaic, colours.

As in `data/transforms.py`, what the model needs is `DensePreprocess`, stored with its weights, and `DetectionAugment`
belongs to the training run alone; images come out as 0 to 1 and not normalised, which the model does. All randomness
comes from torch's global CPU generator, so that `dataset.py` can pin it to the image and the epoch. The geometry of
one picture is drawn first and applied once (`geometry.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from fullfield.data.dense import DensePreprocess
from fullfield.data.detection.copy_paste import copy_paste
from fullfield.data.detection.geometry import AnnotatedImage, Fill, View, empty_masks, view_inside
from fullfield.data.detection.mosaic import mosaic, tile_sizes
from fullfield.errors import ConfigError, DataError, nearest

__all__ = [
    "SCALE_JITTERS",
    "DetectionAugment",
    "DetectionTrainTransform",
    "Target",
    "Transform",
    "eval_transform_detection",
    "train_transform_detection",
]

SCALE_JITTERS = ("none", "multi", "standard", "large")
# Ghiasi et al. 2021, section 3: standard and large scale jitter, as factors of the size that fills the square.
FACTORS = {"standard": (0.8, 1.25), "large": (0.1, 2.0)}
# DETR and ConvNeXt draw the shorter side from 480, 512, ..., 800.
SHORTEST_SHARE, SIDE_STEP = 0.6, 32
MOSAIC_CENTRE = (0.25, 0.75)  # where along an axis the tiles meet, as a share
MOSAIC_ZOOM = 2.0  # a tile shows its picture from just filling it to twice that size
MIN_CROP_SIDE = 8  # v2.RandomIoUCrop divides by the sides of its crop, which must not become 0

Target = dict[str, Tensor]
"""boxes (N, 4) float32, labels (N,) int64, crowd (N,) bool and, if asked for, masks (N, H, W) uint8."""

Transform = Callable[[Image.Image, Mapping[str, Any]], tuple[Tensor, Target]]

Others = Callable[[], tuple[Image.Image, Mapping[str, Any]] | None]
"""Returns another picture of the data set with its target, drawn at random, or None if there is none to read."""


@dataclass(frozen=True)
class DetectionAugment:
    """How training pictures with objects are varied.

    Attributes:
        scale_jitter: "none": the size that the model is evaluated at. "multi": the shorter side is drawn from 0.6 to 1
            times the model's `short_side` in steps of 32 pixels (DETR; the 3× schedules of ConvNeXt and Swin).
            "standard" and "large": the picture is resized to 0.8 to 1.25, or 0.1 to 2, times what fits into a square
            of the model's `long_side`, and cropped or padded to that square (Ghiasi et al. 2021).
        hflip: Mirror half of the pictures left to right.
        vflip: Mirror half of the pictures top to bottom; for pictures without an up, such as micrographs.
        crop: Probability of a crop that keeps at least one object's centre (`v2.RandomIoUCrop`; Liu et al. 2016, SSD).
        photometric: Probability of each change of brightness, contrast, saturation, hue and order of channels
            (`v2.RandomPhotometricDistort`).
        copy_paste: Probability of laying objects of another picture onto this one; needs masks (Ghiasi et al. 2021).
        mosaic: Probability of showing four pictures in one (Bochkovskiy et al. 2020).

    Raises:
        ConfigError: A value is impossible.
    """

    scale_jitter: str = "none"
    hflip: bool = True
    vflip: bool = False
    crop: float = 0.0
    photometric: float = 0.0
    copy_paste: float = 0.0
    mosaic: float = 0.0

    def __post_init__(self) -> None:
        if self.scale_jitter not in SCALE_JITTERS:
            raise ConfigError(
                f"scale_jitter is {self.scale_jitter!r}{nearest(str(self.scale_jitter), SCALE_JITTERS) or '.'} "
                f"Use one of {', '.join(SCALE_JITTERS)}."
            )
        for name in ("hflip", "vflip"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it is true or false.")
        for name in ("crop", "photometric", "copy_paste", "mosaic"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ConfigError(f"{name} is {value!r}; it is a probability, from 0 to 1.")


def eval_transform_detection(image: Image.Image, target: Mapping[str, Any]) -> tuple[Tensor, Target]:
    """Return the picture at its own size as float32 (C, H, W), 0 to 1, and its target unchanged.

    Masks, if there are any, become a uint8 tensor (N, H, W): N × H × W bytes. A metric that can work with the outlines
    should not ask for them.

    Raises:
        DataError: A mask cannot be decoded.
    """
    return _to_tensor(image), _target(_example(image, target))


def train_transform_detection(preprocess: DensePreprocess, augment: DetectionAugment) -> DetectionTrainTransform:
    """Return the random function from a picture and its target to a training image and its target.

    Raises:
        ConfigError: The scale jitter needs a side that `preprocess` does not have.
    """
    return DetectionTrainTransform(preprocess, augment)


@dataclass(frozen=True)
class DetectionTrainTransform:
    """The random variation of one picture with its objects; see `DetectionAugment` for what each part does.

    The result has its final size, and the target lists what is left in it: boxes are clipped, and objects of less than
    one pixel or with an empty mask are left out. That is a matter of the view, and not of bad data. N masks take
    N × H × W bytes at the final size (320 MB for 300 objects at 800 × 1333), copy-paste and mosaic of as many for a
    moment about twice what they return; of masks at the picture's own size one is held at a time.

    Attributes:
        preprocess: Sizes, and the mean colour that padding takes.
        augment: What is varied.

    Raises:
        ConfigError: The scale jitter needs a side that `preprocess` does not have.
    """

    preprocess: DensePreprocess
    augment: DetectionAugment

    def __post_init__(self) -> None:
        jitter = self.augment.scale_jitter
        if jitter == "multi" and self.preprocess.short_side is None:
            raise ConfigError("scale_jitter 'multi' varies short_side, and there is none; give it, or use 'none'.")
        if jitter in FACTORS and self.preprocess.long_side is None:
            raise ConfigError(
                f"scale_jitter {jitter!r} fills a square of long_side, and there is none; give it, or use 'none'."
            )

    @property
    def mixes(self) -> bool:
        """Whether other pictures are wanted."""
        return self.augment.copy_paste > 0 or self.augment.mosaic > 0

    def __call__(
        self, image: Image.Image, target: Mapping[str, Any], others: Others | None = None
    ) -> tuple[Tensor, Target]:
        """Vary one picture.

        Args:
            image: RGB or grey.
            target: As `Target`; masks may be any sequence of (H, W) uint8 tensors, such as one that decodes outlines.
            others: Where copy-paste and mosaic get their other pictures. Without it, or where it gives None, the
                picture goes without them.

        Returns:
            The image (C, H, W) float32, 0 to 1, and its target.

        Raises:
            ConfigError: Copy-paste is asked for and there are no masks.
            DataError: A mask of this picture cannot be decoded.
        """
        if self.augment.copy_paste > 0 and "masks" not in target:
            raise ConfigError("copy_paste needs masks, and the target has none; ask the data set for them.")
        varied = self._varied(_example(image, target), others)
        if others is not None and _chance(self.augment.copy_paste):
            varied = self._pasted(varied, others)
        shown = varied.image
        if self.augment.photometric > 0:
            shown = v2.RandomPhotometricDistort(p=self.augment.photometric)(shown)
        return _to_tensor(shown), _target(varied)

    def _varied(self, example: AnnotatedImage, others: Others | None) -> AnnotatedImage:
        if others is not None and _chance(self.augment.mosaic):
            four = [example, *(_other(others) for _ in range(3))]
            found = [one for one in four if one is not None]
            try:
                if len(found) == len(four):
                    return self._mosaic(found)
            except DataError:  # a mask: if it is of this picture, it is met again below
                pass
        example, window = self._cropped(example)
        resized = self._resized(window[2:])
        view = view_inside(window[2:], resized, self._canvas(resized), _draw)
        view = replace(view, window=(window[0] + view.window[0], window[1] + view.window[1], *view.window[2:]))
        return self._mirrored(view)(example, self._fill(example.image))

    def _mosaic(self, examples: list[AnnotatedImage]) -> AnnotatedImage:
        height, width = self._canvas(self._resized(examples[0].size))
        canvas = max(height, 2), max(width, 2)  # a tile needs a pixel
        y, x = (min(max(round(_uniform(*MOSAIC_CENTRE) * side), 1), side - 1) for side in canvas)
        tiles = []
        for example, tile in zip(examples, tile_sizes(canvas, (y, x)), strict=True):
            scale = max(tile[0] / example.size[0], tile[1] / example.size[1]) * _uniform(1.0, MOSAIC_ZOOM)
            resized = max(tile[0], round(example.size[0] * scale)), max(tile[1], round(example.size[1] * scale))
            view = view_inside(example.size, resized, tile, _draw)
            tiles.append(self._mirrored(view)(example, self._fill(example.image)))
        return mosaic(tiles)

    def _pasted(self, below: AnnotatedImage, others: Others) -> AnnotatedImage:
        other = _other(others)
        if other is None:
            return below
        view = self._mirrored(view_inside(other.size, self._resized(other.size), below.size, _draw))
        chosen = torch.rand(len(other.labels), 1) < 0.5
        other = replace(other, boxes=other.boxes * chosen)  # without a box, a mask is not even decoded
        try:
            return copy_paste(below, view(other, self._fill(below.image)))
        except DataError:  # whoever loads that picture itself is told
            return below

    def _cropped(self, example: AnnotatedImage) -> tuple[AnnotatedImage, tuple[int, int, int, int]]:
        """Draw a window (top, left, height, width); objects whose centre is outside lose their box."""
        whole = (0, 0, *example.size)
        if not _chance(self.augment.crop) or not len(example.labels) or min(example.size) < MIN_CROP_SIDE:
            return example, whole
        boxes = tv_tensors.BoundingBoxes(example.boxes, format="XYXY", canvas_size=example.size)
        drawn = v2.RandomIoUCrop().make_params([example.image, boxes])
        if not drawn:
            return example, whole
        kept = drawn["is_within_crop_area"][:, None]
        example = replace(example, boxes=example.boxes * kept)
        return example, (drawn["top"], drawn["left"], drawn["height"], drawn["width"])

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Draw the height and width that a picture of `size` is resized to."""
        p, jitter = self.preprocess, self.augment.scale_jitter
        if jitter == "multi":
            assert p.short_side is not None  # noqa: S101 - checked above
            steps = math.floor(p.short_side * (1 - SHORTEST_SHARE) / SIDE_STEP + 1e-9)
            p = replace(p, short_side=p.short_side - SIDE_STEP * _draw(steps + 1))
        if jitter not in FACTORS:
            return p.resized(*size)
        assert p.long_side is not None  # noqa: S101 - checked above
        scale = p.long_side / max(size) * _uniform(*FACTORS[jitter])
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))

    def _canvas(self, resized: tuple[int, int]) -> tuple[int, int]:
        side = self.preprocess.long_side
        return (side, side) if self.augment.scale_jitter in FACTORS and side is not None else resized

    def _mirrored(self, view: View) -> View:
        hflip = self.augment.hflip and _chance(0.5)
        return replace(view, hflip=hflip, vflip=self.augment.vflip and _chance(0.5))

    def _fill(self, image: Image.Image) -> Fill:
        values = tuple(round(255 * value) for value in self.preprocess.mean)
        if image.mode == "L":
            return round(sum(values) / len(values))
        return values if len(values) == 3 else values * 3


def _other(others: Others) -> AnnotatedImage | None:
    drawn = others()
    return None if drawn is None else _example(*drawn)


def _example(image: Image.Image, target: Mapping[str, Any]) -> AnnotatedImage:
    return AnnotatedImage(image, target["boxes"], target["labels"], target["crowd"], target.get("masks"))


def _target(example: AnnotatedImage) -> Target:
    target = {"boxes": example.boxes, "labels": example.labels, "crowd": example.crowd}
    masks = example.masks
    if masks is not None and not isinstance(masks, Tensor):
        decoded = empty_masks(len(masks), example.size)
        for index in range(len(masks)):
            decoded[index] = masks[index]
        masks = decoded
    return target if masks is None else {**target, "masks": masks}


def _to_tensor(image: Image.Image) -> Tensor:
    x: Tensor = v2.functional.to_dtype(v2.functional.pil_to_tensor(image), torch.float32, scale=True)
    return x


def _chance(probability: float) -> bool:
    return probability > 0 and float(torch.rand(())) < probability


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _draw(count: int) -> int:
    return int(torch.randint(count, ()))
