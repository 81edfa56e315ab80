from __future__ import annotations

import numpy as np
import pytest
import torch

from fullfield.data.detection.mosaic import mosaic, tile_sizes
from fullfield.errors import ConfigError

from .pictures import annotated


def test_tiles_cover_the_canvas() -> None:
    sizes = tile_sizes((30, 50), (10, 35))
    assert sizes == ((10, 35), (10, 15), (20, 35), (20, 15))
    assert sum(height * width for height, width in sizes) == 30 * 50


@pytest.mark.parametrize("centre", [(0, 5), (5, 0), (30, 5), (5, 50), (-1, 5)])
def test_centre_on_the_edge_is_refused(centre: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="must lie inside"):
        tile_sizes((30, 50), centre)


@pytest.mark.parametrize("masks", [True, False])
def test_every_object_lies_where_its_tile_was_put(masks: bool) -> None:
    sizes = tile_sizes((30, 50), (12, 20))
    boxes = [[(1, 2, 7, 9), (10, 3, 19, 11)], [], [(0, 0, 20, 18)], [(3, 4, 8, 9)]]
    tiles = [annotated(*size, of_tile, masks=masks) for size, of_tile in zip(sizes, boxes, strict=True)]
    whole = mosaic(tiles)
    assert whole.size == (30, 50)
    assert whole.labels.tolist() == [0, 1, 0, 0]
    assert whole.crowd.tolist() == [False, True, False, False]
    assert whole.boxes.tolist() == [[1, 2, 7, 9], [10, 3, 19, 11], [0, 12, 20, 30], [23, 16, 28, 21]]
    pixels = np.asarray(whole.image)
    assert np.array_equal(pixels[:12, 20:], np.asarray(tiles[1].image))
    for box, label in zip(whole.boxes.int().tolist(), whole.labels.tolist(), strict=True):
        assert (pixels[box[1] : box[3], box[0] : box[2], label] == 255).all()
    if masks:
        assert isinstance(whole.masks, torch.Tensor)
        assert np.array_equal(whole.masks[whole.labels == 0].sum(0).numpy(), pixels[..., 0] // 255)
        assert np.array_equal(whole.masks[1].numpy(), pixels[..., 1] // 255)
    else:
        assert whole.masks is None


def test_tiles_without_objects_give_a_picture_without() -> None:
    whole = mosaic([annotated(*size, []) for size in tile_sizes((4, 6), (1, 1))])
    assert isinstance(whole.masks, torch.Tensor)
    assert whole.masks.shape == (0, 4, 6)
    assert whole.boxes.shape == (0, 4)
