"""Mosaic: four pictures share one canvas.

Alexey Bochkovskiy et al., "YOLOv4: Optimal Speed and Accuracy of Object Detection", 2020, section 3.3. Each picture
has been cut and resized to its tile before (see `transforms.py`), so that no part of the canvas is padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from fullfield.data.detection.geometry import AnnotatedImage, empty_masks
from fullfield.errors import ConfigError

__all__ = ["mosaic", "tile_sizes"]


def tile_sizes(canvas: tuple[int, int], centre: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Return height and width of the upper left, upper right, lower left and lower right tile, pixels.

    Args:
        canvas: Height and width.
        centre: Where the tiles meet: y and x.

    Raises:
        ConfigError: The centre is not inside the canvas, so that a tile would be empty.
    """
    (height, width), (y, x) = canvas, centre
    if not (0 < y < height and 0 < x < width):
        raise ConfigError(
            f"centre is {centre} of a canvas of {canvas}; it must lie inside, for each tile to have pixels."
        )
    return (y, x), (y, width - x), (height - y, x), (height - y, width - x)


def mosaic(tiles: Sequence[AnnotatedImage]) -> AnnotatedImage:
    """Put four pictures together.

    Args:
        tiles: Upper left, upper right, lower left and lower right; sizes as `tile_sizes` gives them, one colour mode.
            Masks of all are uint8 tensors (N, h, w), or none has masks.

    Returns:
        The picture with the objects of all tiles, in the order of the tiles.
    """
    y, x = tiles[0].size
    height, width = y + tiles[3].size[0], x + tiles[3].size[1]
    corners = ((0, 0), (0, x), (y, 0), (y, x))
    image = Image.new(tiles[0].image.mode, (width, height))
    boxes = []
    for tile, (top, left) in zip(tiles, corners, strict=True):
        image.paste(tile.image, (left, top))
        boxes.append(tile.boxes + torch.tensor([left, top, left, top], dtype=tile.boxes.dtype))
    return AnnotatedImage(
        image,
        torch.cat(boxes),
        torch.cat([tile.labels for tile in tiles]),
        torch.cat([tile.crowd for tile in tiles]),
        _masks(tiles, corners, (height, width)),
    )


def _masks(tiles: Sequence[AnnotatedImage], corners: Sequence[tuple[int, int]], size: tuple[int, int]) -> Tensor | None:
    if tiles[0].masks is None:
        return None
    masks = empty_masks(sum(len(tile.labels) for tile in tiles), size)
    start = 0
    for tile, (top, left) in zip(tiles, corners, strict=True):
        assert isinstance(tile.masks, Tensor)  # noqa: S101 - for the type checker
        end = start + len(tile.masks)
        masks[start:end, top : top + tile.size[0], left : left + tile.size[1]] = tile.masks
        start = end
    return masks
