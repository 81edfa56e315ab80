"""Show a part of an annotated picture at another size, mirrored and padded, and take its objects along.

Every geometric augmentation for detection is one `View`: a window of the picture, resized, mirrored and laid into the
upper left corner of a canvas. Applying it once, instead of resizing, cropping and padding one after the other, resizes
only the pixels that are wanted and holds no mask at more than its final size. Boxes go through torchvision's
`transforms.v2`. Masks do not: v2 resizes them to the nearest pixel, which for a smaller picture lies half a pixel
towards the upper left and has no antialias. Here a mask is resized by the same filter as its picture, and is where
that is at least one half.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

from fullfield.errors import DataError

__all__ = ["AnnotatedImage", "Fill", "MaskSequence", "View", "empty_masks", "mask_box", "view_inside"]

Fill = int | tuple[int, ...]
"""Colour of padding: a number for grey pictures, three for RGB, 0 to 255."""

MAX_MASK_BYTES = 4 * 10**9
"""Of the masks of one picture; 500 objects take an eighth of it at 800 × 1333 pixels."""

MIN_SIDE = 1.0  # pixels; an object whose box is narrower or lower is not a target, as in v2.SanitizeBoundingBoxes


def empty_masks(count: int, size: tuple[int, int]) -> Tensor:
    """Return masks (count, H, W) uint8 of zeros.

    Raises:
        DataError: They would take more than `MAX_MASK_BYTES`: one picture of a batch must not end a run.
    """
    needed = count * size[0] * size[1]
    if needed > MAX_MASK_BYTES:
        raise DataError(
            f"{count} objects at {size[1]} × {size[0]} pixels need {needed / 1e9:.1f} GB of masks, more than"
            f" {MAX_MASK_BYTES / 1e9:.1f}. Use a smaller image size or a head without masks, or cut the picture up."
        )
    return torch.zeros(count, *size, dtype=torch.uint8)


class MaskSequence(Protocol):
    """N masks of one picture, looked at one at a time; a uint8 tensor (N, H, W) is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor:
        """Return mask `index`, (H, W) uint8, 1 inside the object."""


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """A picture of H × W pixels and its N objects; N may be 0.

    Attributes:
        image: RGB or grey.
        boxes: (N, 4) float32, left, top, right, bottom, pixels.
        labels: (N,) int64.
        crowd: (N,) bool.
        masks: N masks (H, W), or None.
    """

    image: Image.Image
    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    masks: MaskSequence | None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return self.image.height, self.image.width


@dataclass(frozen=True)
class View:
    """Which part of a picture is shown, and how.

    Attributes:
        window: Top, left, height and width of the part, whole pixels of the picture.
        size: Height and width that the part is resized to, pixels.
        canvas: Height and width of the result, at least `size`; what is beyond `size` is padding.
        hflip: Mirror the part left to right.
        vflip: Mirror the part top to bottom.
    """

    window: tuple[int, int, int, int]
    size: tuple[int, int]
    canvas: tuple[int, int]
    hflip: bool = False
    vflip: bool = False

    def __call__(self, example: AnnotatedImage, fill: Fill) -> AnnotatedImage:
        """Return a new picture of `canvas` pixels with the objects that are in it; masks become a tensor (N, H, W).

        Objects of which less than a pixel's width or height is left, or whose mask is empty, are left out. Where an
        object with a mask was cut, its box is that of what remains of the mask.

        Args:
            example: The picture that the window lies in.
            fill: Colour of the padding.

        Raises:
            DataError: A mask cannot be decoded.
        """
        canvas = Image.new(example.image.mode, (self.canvas[1], self.canvas[0]), fill)
        canvas.paste(self._shown(example.image), (0, 0))
        boxes = self._boxes(example.boxes)
        sides = boxes[:, 2:] - boxes[:, :2]
        kept = (sides >= MIN_SIDE).all(dim=1).nonzero().flatten().tolist()
        masks = None
        if example.masks is not None:
            masks, kept = self._masks(example, boxes, kept)
        return AnnotatedImage(canvas, boxes[kept], example.labels[kept], example.crowd[kept], masks)

    def _masks(self, example: AnnotatedImage, boxes: Tensor, kept: list[int]) -> tuple[Tensor, list[int]]:
        """Return the masks of those of `kept` that are not empty, and which these are; `boxes` of cut ones change."""
        assert example.masks is not None  # noqa: S101 - for the type checker
        cut = self._is_cut(example.boxes).tolist()
        masks = empty_masks(len(kept), self.canvas)
        visible: list[int] = []
        for index in kept:
            # One mask at a time is held at the picture's own size: all of them may not fit into memory.
            mask = masks[len(visible)]  # an empty one leaves its place to the next
            self._lay_mask(example.masks[index].numpy(), mask.numpy())
            if not mask.any():
                continue
            visible.append(index)
            if cut[index]:
                boxes[index] = mask_box(mask)
        return masks[: len(visible)], visible

    def _shown(self, image: Image.Image) -> Image.Image:
        """Return the part, resized and mirrored."""
        return self._mirrored(self._resized(image, (0, self.size[0]), (0, self.size[1])))

    def _lay_mask(self, mask: NDArray[np.uint8], canvas: NDArray[np.uint8]) -> None:
        """Write a mask of the whole picture (H, W) into one of the canvas, which is 0.

        Only the surroundings of the object are resized; of hundreds of objects, most are small.
        """
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            return
        top, bottom = self._reach(int(rows[0]), int(rows[-1]) + 1, axis=0)
        left, right = self._reach(int(columns[0]), int(columns[-1]) + 1, axis=1)
        if top >= bottom or left >= right:
            return
        resized = self._resized(Image.fromarray(mask * np.uint8(255)), (top, bottom), (left, right))
        if self.hflip:
            left, right = self.size[1] - right, self.size[1] - left
        if self.vflip:
            top, bottom = self.size[0] - bottom, self.size[0] - top
        canvas[top:bottom, left:right] = np.asarray(self._mirrored(resized)) >= 128

    def _reach(self, low: int, high: int, axis: int) -> tuple[int, int]:
        """Return the range of resized pixels in which a mask from `low` to `high` can be at least one half."""
        start, length, out = self.window[axis], self.window[2 + axis], self.size[axis]
        scale = out / length
        return max(0, math.floor((low - start) * scale) - 2), min(out, math.ceil((high - start) * scale) + 2)

    def _resized(self, image: Image.Image, rows: tuple[int, int], columns: tuple[int, int]) -> Image.Image:
        """Return these rows and columns of the part as it is after resizing and before mirroring."""
        top, left, height, width = self.window
        y, x = height / self.size[0], width / self.size[1]
        # Rounding may put an end of the box a hair beyond the picture, which Pillow refuses.
        box = (
            left + columns[0] * x,
            top + rows[0] * y,
            min(left + columns[1] * x, image.width),
            min(top + rows[1] * y, image.height),
        )
        size = (columns[1] - columns[0], rows[1] - rows[0])
        return image.resize(size, Image.Resampling.BILINEAR, box=box)

    def _mirrored(self, image: Image.Image) -> Image.Image:
        if self.hflip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if self.vflip else image

    def _boxes(self, boxes: Tensor) -> Tensor:
        top, left, height, width = self.window
        # Boxes lie in the picture, which need not be known here: cropping gives them the window for a canvas.
        shown = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(top + height, left + width))
        shown = v2.functional.crop(shown, top, left, height, width)
        shown = v2.functional.resize(shown, list(self.size))
        shown = v2.functional.horizontal_flip(shown) if self.hflip else shown
        shown = v2.functional.vertical_flip(shown) if self.vflip else shown
        # A flip subtracts from the width and may leave a coordinate a rounding error below 0.
        plain: Tensor = v2.functional.clamp_bounding_boxes(shown).as_subclass(Tensor)
        return plain

    def _is_cut(self, boxes: Tensor) -> Tensor:
        top, left, height, width = self.window
        low = boxes[:, :2] < torch.tensor([left, top])
        high = boxes[:, 2:] > torch.tensor([left + width, top + height])
        return (low | high).any(dim=1)


def view_inside(
    source: tuple[int, int], resized: tuple[int, int], canvas: tuple[int, int], draw: Callable[[int], int]
) -> View:
    """Return the view of a picture that is resized and then cropped or padded to a canvas.

    Args:
        source: Height and width of the picture, pixels.
        resized: Height and width that the whole of it would have, pixels.
        canvas: Height and width of the result, pixels.
        draw: From n to a number of 0 to n - 1: where along an axis the crop lies.
    """
    top, height, out_height = _along_axis(source[0], resized[0], canvas[0], draw)
    left, width, out_width = _along_axis(source[1], resized[1], canvas[1], draw)
    return View((top, left, height, width), (out_height, out_width), canvas)


def _along_axis(source: int, resized: int, canvas: int, draw: Callable[[int], int]) -> tuple[int, int, int]:
    """Return start and length of the window, and the length that it becomes."""
    if resized <= canvas:
        return 0, source, resized
    # Whole pixels, for boxes and masks to agree; the scale is off by less than half a pixel of the window.
    length = min(source, max(1, round(source * canvas / resized)))
    return draw(source - length + 1), length, canvas


def mask_box(mask: Tensor) -> Tensor:
    """Return the box of a mask (H, W) that is not empty: (4,) float32, with edges at whole pixels."""
    box: Tensor = masks_to_boxes(mask[None])[0]
    return box + torch.tensor([0.0, 0.0, 1.0, 1.0])  # torchvision names the last pixel, we the edge
