"""Where on the image the units of a map lie: at the middle of what they see, not of equal tiles.

Enlarging a map to the image puts unit i in the middle of the i-th of h equal tiles. In nets of padded convolutions of
stride 2 that is wrong: at a total stride of 32, unit i sees the pixels around 32 i, not 32 i + 15.5, and every map
looks moved by half a unit down and to the right. The theoretical receptive field says where the middle is (Araujo et
al. 2019; see `receptive_field`). Where it can't be followed, as in windowed attention, the tiles stay.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from fullfield.errors import ConfigError
from fullfield.measure.receptive_field import receptive_field

__all__ = ["Place", "find_place", "resampled"]

Map = npt.NDArray[np.float32]
Place = Callable[[Map], Map]
"""A map (H, W) enlarged tile by tile -> the same with its units where they belong."""


def find_place(model: nn.Module, layer: str, image: Tensor, map_size: tuple[int, int]) -> Place:
    """Return the function that puts the units of a layer where they belong.

    Args:
        model: On the device of the image; it runs once more.
        layer: Of which the map is.
        image: (1, C, H, W), in the model's dtype.
        map_size: (h, w) of the map before it was enlarged.
    """
    try:
        field = receptive_field(model, layer, image)
    except ConfigError:  # a layout that the arithmetic of kernels does not know
        return lambda heat: heat
    if field.centre is None or field.stride is None or 0 in field.stride:
        return lambda heat: heat
    rows, columns = (
        _tile_coordinates(side, units, centre, stride)
        for side, units, centre, stride in zip(image.shape[2:], map_size, field.centre, field.stride, strict=True)
    )
    return lambda heat: _to_peak(resampled(heat, rows, columns))


def _to_peak(heat: Map) -> Map:
    """Scale a map to its peak, which lies between pixels where units have an even number of them."""
    peak = heat.max()
    return heat / peak if peak > 0 else heat


def resampled(heat: Map, rows: npt.NDArray[np.float64], columns: npt.NDArray[np.float64]) -> Map:
    """Return a map at other coordinates, by linear interpolation; beyond its border it goes on as at the border.

    Args:
        heat: (H, W).
        rows: (H,), for every row of the result the row of `heat` to take.
        columns: (W,), likewise.
    """
    for axis, wanted in ((0, rows), (1, columns)):
        last = heat.shape[axis] - 1
        at = np.clip(wanted, 0, last)
        low = np.minimum(np.floor(at).astype(np.int64), max(last - 1, 0))
        part = np.expand_dims(at - low, 1 - axis)
        heat = heat.take(low, axis) * (1 - part) + heat.take(np.minimum(low + 1, last), axis) * part
    return heat.astype(np.float32)


def _tile_coordinates(side: int, units: int, centre: float, stride: float) -> npt.NDArray[np.float64]:
    """Return for every pixel the row of the tile-wise map that shows what belongs there.

    Args:
        side: Of the image, pixels.
        units: Of the map along this side.
        centre: Pixel index of the middle of what unit 0 sees.
        stride: Pixels between the middles of neighbouring units.
    """
    unit = (np.arange(side) - centre) / stride
    return (unit + 0.5) * side / units - 0.5
