"""The operators once more, as float64 numpy loops over windows: what the tests compare with.

Written from the equations alone, not from `fullfield.ops`. Which pixels a window holds is found by testing
every row and column against its phase, so neither reshape, padding, stride nor crop is involved. Slow on
purpose: use few channels. Keep it free of torch and of anything imported from the package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Pixels = list[tuple[int, int]]

EPS = 1e-6
MAX_SCALE = 60.0


def windows(height: int, width: int, region_size: int) -> dict[tuple[int, int], Pixels]:
    """Return the pixels of each non-empty window (i, j): row = i and column = j modulo `region_size`."""
    found: dict[tuple[int, int], Pixels] = {}
    for row in range(height):
        for column in range(width):
            found.setdefault((row % region_size, column % region_size), []).append((row, column))
    return found


def mix_rows(rows: Array, scale: float, similarity: str) -> Array:
    """Mix the d rows (d, n) of one head in one window by the softmax of their similarities."""
    if similarity == "cosine":
        unit = np.stack([row / math.sqrt(float(row @ row) + EPS) for row in rows])
        logits = min(max(scale, -MAX_SCALE), MAX_SCALE) * (unit @ unit.T)
    else:
        logits = scale * (rows @ rows.T)
    mixed = np.empty_like(rows)
    for i, logit in enumerate(logits):
        weight = np.exp(logit - logit.max())
        mixed[i] = (weight / weight.sum()) @ rows
    return mixed


def region_pwconv(x: Array, scale: Sequence[float], region_size: int, similarity: str = "cosine") -> Array:
    """Return RPWConv of x (B, C, H, W); there are as many heads as entries in `scale`."""
    batch, channels, height, width = x.shape
    head_width = channels // len(scale)
    y = np.full(x.shape, np.nan)  # a pixel that no window writes stays visible
    for pixels in windows(height, width, region_size).values():
        rows = [row for row, _ in pixels]
        columns = [column for _, column in pixels]
        for b in range(batch):
            for head, s in enumerate(scale):
                for_head = slice(head * head_width, (head + 1) * head_width)
                window = np.stack([channel[rows, columns] for channel in x[b, for_head]])
                for k, mixed in enumerate(mix_rows(window, s, similarity)):
                    y[b, head * head_width + k, rows, columns] = mixed
    return y


def dynamic_pwconv(x: Array, scale: Sequence[float], similarity: str = "cosine") -> Array:
    """Return Dynamic PWConv of x (B, C, *spatial): one window that holds every pixel."""
    batch, channels = x.shape[:2]
    head_width = channels // len(scale)
    y = np.full(x.shape, np.nan)
    for b in range(batch):
        for head, s in enumerate(scale):
            group = range(head * head_width, (head + 1) * head_width)
            mixed = mix_rows(np.stack([x[b, c].ravel() for c in group]), s, similarity)
            for c, row in zip(group, mixed, strict=True):
                y[b, c] = row.reshape(x.shape[2:])
    return y


def region_pool(x: Array, region_size: int) -> Array:
    """Return the mean of every window of x (B, C, H, W) over the pixels it has."""
    batch, channels, height, width = x.shape
    means = np.full((batch, channels, min(region_size, height), min(region_size, width)), np.nan)
    for (i, j), pixels in windows(height, width, region_size).items():
        for b in range(batch):
            for c in range(channels):
                means[b, c, i, j] = math.fsum(x[b, c, row, column] for row, column in pixels) / len(pixels)
    return means


def gate_cell(position: int, size: int, cells: int, placement: str) -> int:
    """Return the cell of `cells` that pixel `position` of `size` reads along one axis."""
    return position * cells // size if placement == "nearest" else position % cells


def region_gate(x: Array, gate: Array, placement: str = "nearest") -> Array:
    """Return x (B, C, H, W) times the gate (B, C, gh, gw), each pixel by the cell it reads."""
    height, width = x.shape[2:]
    y = np.full(x.shape, np.nan)
    for row in range(height):
        i = gate_cell(row, height, gate.shape[2], placement)
        for column in range(width):
            j = gate_cell(column, width, gate.shape[3], placement)
            y[:, :, row, column] = x[:, :, row, column] * gate[:, :, i, j]
    return y


def relative_error(actual: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """Return ‖actual - expected‖ / ‖expected‖ in float64; NaN anywhere gives NaN, a wrong shape raises."""
    a, e = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if a.shape != e.shape:
        raise AssertionError(f"shape {a.shape} where {e.shape} was expected")
    return float(np.linalg.norm(a - e) / max(float(np.linalg.norm(e)), 1e-300))
