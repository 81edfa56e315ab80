"""Multiply a map by a small map of gates, the second half of Region Attention.

Source: RaCNN (ICLR 2025 submission): nearest-neighbour upsampling to H x W, then a product. Placement
"nearest" is the source's text; it puts cell (i, j) on one contiguous block although the cell was pooled from
the pixels of phase (i, j). Ours: "modulo", which puts it back on the pixels that it came from. Neither path
stores the upsampled map where the gates divide the map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fullfield.ops.checks import check_map
from fullfield.ops.dispatch import forced_path, one_of
from fullfield.ops.layout import is_channels_last

__all__ = ["PLACEMENTS", "region_gate"]

PLACEMENTS = ("nearest", "modulo")


def region_gate(x: Tensor, gate: Tensor, *, placement: str = "nearest", path: str | None = None) -> Tensor:
    """Multiply every pixel by the gate of its cell.

    Args:
        x: (B, C, H, W), any floating dtype, NCHW or channels_last.
        gate: (B, C, gh, gw) with gh <= H and gw <= W, as `region_pool` gives.
        placement: "nearest": row i reads gate row floor(i * gh / H); "modulo": row i reads i mod gh; columns alike.
        path: "broadcast" (a view, where gh and gw divide H and W), "gather" (index the gates in the layout of
            x), "reference", or None for the first that fits.

    Returns:
        (B, C, H, W), same dtype and memory format as `x`.

    Raises:
        ValueError: Shapes do not fit, or placement or path is unknown, or "broadcast" is forced where it cannot be.
        TypeError: Not floating point.
    """
    check_map(x)
    check_map(gate, "gate")
    one_of("placement", placement, PLACEMENTS)
    path = forced_path("region_gate", path)
    (H, W), (gh, gw) = x.shape[2:], gate.shape[2:]
    exporting = torch.compiler.is_exporting()  # a comparison of dynamic sizes would fix its answer in the graph
    if not exporting and (gate.shape[:2] != x.shape[:2] or gh > H or gw > W):
        raise ValueError(
            f"gate {tuple(gate.shape)} does not fit x {tuple(x.shape)}: same B and C, at most as many rows and columns"
        )
    if path is None:
        divides = not exporting and H % gh == 0 and W % gw == 0
        path = "broadcast" if divides else "gather"
    elif path == "broadcast" and (H % gh or W % gw):
        raise ValueError(f"path 'broadcast' needs gates that divide the map, got {gh}x{gw} gates on {H}x{W}")
    gate = gate.to(x.dtype)
    return {"broadcast": _broadcast, "gather": _gather, "reference": _reference}[path](x, gate, placement)


def _reference(x: Tensor, gate: Tensor, placement: str) -> Tensor:
    """Read as the definition: index the gates by row and by column, multiply."""
    row, column = _cells(x, gate, placement)
    return x * gate[:, :, row][:, :, :, column]


def _gather(x: Tensor, gate: Tensor, placement: str) -> Tensor:
    """The same with the upsampled gates laid out as x is: a product of two layouts is several times slower."""
    row, column = _cells(x, gate, placement)  # columns first: few numbers are moved one by one, then whole rows
    if is_channels_last(x):
        gate_BHWC = gate.permute(0, 2, 3, 1).index_select(2, column).index_select(1, row)
        return x * gate_BHWC.permute(0, 3, 1, 2)
    return x * gate.index_select(3, column).index_select(2, row)


def _cells(x: Tensor, gate: Tensor, placement: str) -> tuple[Tensor, Tensor]:
    """Return which gate row each row of x reads, and which gate column each column."""
    (H, W), (gh, gw) = x.shape[2:], gate.shape[2:]
    row, column = torch.arange(H, device=x.device), torch.arange(W, device=x.device)
    if placement == "nearest":  # in integers: a float scale misses a cell at some sizes
        return row * gh // H, column * gw // W
    return row % gh, column % gw


def _broadcast(x: Tensor, gate: Tensor, placement: str) -> Tensor:
    """Split rows and columns by cell and let broadcasting do the upsampling."""
    B, C, H, W = x.shape
    gh, gw = gate.shape[2:]
    if placement == "nearest":
        y = x.view(B, C, gh, H // gh, gw, W // gw) * gate[:, :, :, None, :, None]
    else:
        y = x.view(B, C, H // gh, gh, W // gw, gw) * gate[:, :, None, :, None, :]
    return y.view(B, C, H, W)
