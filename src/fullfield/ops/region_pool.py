"""Sparse global average pooling: the mean of every sparse global window, the first half of Region Attention.

Source: RaCNN (ICLR 2025 submission). Window (i, j) holds the pixels with row = i and column = j modulo r; the
result is an r x r map. Ours: means divide by the true number of pixels (on maps that r does not divide, means
over padded windows are 18 to 71 % off), and half types are summed in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fullfield.ops.checks import check_map, check_region_size
from fullfield.ops.dispatch import forced_path
from fullfield.ops.layout import cells, exported_cells, is_channels_last, padded

__all__ = ["region_pool"]


def region_pool(x: Tensor, region_size: int, *, path: str | None = None) -> Tensor:
    """Average every sparse global window.

    Args:
        x: (B, C, H, W) with any H, W >= 1, any floating dtype, NCHW or channels_last.
        region_size: r. Where H or W is smaller than r, only cells that have pixels exist.
        path: "strided" (all windows at once), "reference", or None for "strided".

    Returns:
        (B, C, min(r, H), min(r, W)), same dtype and memory format as `x`.

    Raises:
        ValueError: `x` is not (B, C, H, W), `region_size` < 1, or the path is unknown.
        TypeError: `x` is not floating point, or `region_size` is not an int.
    """
    check_map(x)
    check_region_size(region_size)
    if torch.compiler.is_exporting() and path is None:
        return _exported(x, region_size)
    rows, columns = cells(x.shape[2], region_size), cells(x.shape[3], region_size)
    pool = _reference if forced_path("region_pool", path) == "reference" else _strided
    pooled = pool(x, rows, columns)
    return pooled.contiguous(memory_format=torch.channels_last) if is_channels_last(x) else pooled


def _reference(x: Tensor, rows: int, columns: int) -> Tensor:
    """Read as the definition: the mean of every strided slice."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    means = [wide[:, :, i::rows, j::columns].mean(dim=(2, 3)) for i in range(rows) for j in range(columns)]
    return torch.stack(means, dim=-1).view(x.shape[0], x.shape[1], rows, columns).to(x.dtype)


def _strided(x: Tensor, rows: int, columns: int) -> Tensor:
    """Sum all windows at once over zero-padded regions, then divide by true counts.

    Rows are summed first and columns second, in the order in which x lies in memory: one pass over contiguous
    numbers, where a single sum over both axes is up to 25 times slower on a CPU.
    """
    B, C, H, W = x.shape
    nh, nw = -(-H // rows), -(-W // columns)
    x_pad = F.pad(x, (0, nw * columns - W, 0, nh * rows - H))
    wide = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    # rows of phase i: ceil((H - i) / r)
    count_h = (H - 1 - torch.arange(rows, device=x.device)) // rows + 1
    count_w = (W - 1 - torch.arange(columns, device=x.device)) // columns + 1
    if is_channels_last(x):
        sums_BrWC = x_pad.permute(0, 2, 3, 1).view(B, nh, rows, nw * columns * C).sum(dim=1, dtype=wide)
        sums = sums_BrWC.view(B, rows, nw, columns, C).sum(dim=2).permute(0, 3, 1, 2)
    else:
        sums_BCrW = x_pad.view(B, C, nh, rows, nw * columns).sum(dim=2, dtype=wide)
        sums = sums_BCrW.view(B, C, rows, nw, columns).sum(dim=3)
    return (sums / (count_h[:, None] * count_w).to(wide)).to(x.dtype)


def _exported(x: Tensor, region_size: int) -> Tensor:
    """`_strided` without a branch on a free size, see `exported_cells`."""
    B, C, H, W = x.shape
    if region_size == 1:
        return x.mean(dim=(2, 3), keepdim=True)
    (rows, nh), (columns, nw) = exported_cells(H, region_size), exported_cells(W, region_size)
    wide = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    x_pad = padded(x, nw * columns - W, nh * rows - H)
    sums_BCrW = x_pad.view(B, C, nh, rows, nw * columns).sum(dim=2, dtype=wide)
    sums = sums_BCrW.view(B, C, rows, nw, columns).sum(dim=3)
    cells_h: Any = torch.sym_min(rows, H)  # cells without pixels do not exist
    cells_w: Any = torch.sym_min(columns, W)
    count_h = (H - 1 - torch.arange(cells_h, device=x.device)) // rows + 1
    count_w = (W - 1 - torch.arange(cells_w, device=x.device)) // columns + 1
    return (padded(sums, cells_w - columns, cells_h - rows) / (count_h[:, None] * count_w).to(wide)).to(x.dtype)
