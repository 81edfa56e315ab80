"""Start the Triton kernels of region_pwconv. Nothing else imports Triton, and this file is imported at the first call.

Shapes: x and whatever lies like it (B, C, H, W), dense in NCHW or channels_last; scale (heads,) float32, clamped.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fullfield.ops.kernels.pixel import pixel_backward, pixel_forward
from fullfield.ops.kernels.plan import Plan
from fullfield.ops.kernels.rows import rows_backward, rows_forward
from fullfield.ops.kernels.tile import tile_backward, tile_forward

__all__ = ["Geometry", "launch_backward", "launch_forward"]


class Geometry(NamedTuple):
    """How a map is cut: everything that the kernels need beside the tensors.

    Args:
        rows: Windows down, min(r, H).
        columns: Windows across, min(r, W).
        heads: Groups of channels.
        cosine: Whether similarities are cosines; inner products otherwise.
        eps: Added to the squared norm.
    """

    rows: int
    columns: int
    heads: int
    cosine: bool
    eps: float


def launch_forward(x: Tensor, scale: Tensor, y: Tensor, kept: Tensor, cut: Geometry, chosen: Plan) -> None:
    """Fill y, and what is kept in float32: (windows, d) for "rows", (windows, 2 d) for "pixel"."""
    sizes, blocks, programs = _sizes(x, cut, chosen)
    common = _common(x, cut, chosen) | {"num_warps": chosen.forward_warps}
    with _on_device_of(x):
        if chosen.kernel == "tile":
            tile_forward[(programs,)](x, scale, y, *sizes, *x.stride(), **common)
        elif chosen.kernel == "rows":
            rows_forward[(programs,)](x, scale, y, kept, *sizes, blocks, *x.stride(), **common)
        else:
            pixel_forward[(programs,)](x, scale, y, kept, *sizes, blocks, *x.stride(), **common)


def launch_backward(
    g: Tensor,
    x: Tensor,
    scale: Tensor,
    y: Tensor | None,
    kept: Tensor | None,
    dx: Tensor,
    cut: Geometry,
    chosen: Plan,
) -> Tensor:
    """Fill dx and return ds, (heads,) float32. "tile" needs neither y nor kept, "pixel" no y."""
    sizes, blocks, programs = _sizes(x, cut, chosen)
    common = _common(x, cut, chosen) | {"num_warps": chosen.backward_warps}
    images = x.shape[0]
    parts = torch.empty(programs, device=x.device, dtype=torch.float32)
    with _on_device_of(x):
        if chosen.kernel == "tile":
            tile_backward[(programs,)](x, g, scale, dx, parts, images, *sizes, *x.stride(), **common)
        elif chosen.kernel == "rows":
            rows_backward[(programs,)](x, g, scale, y, kept, dx, parts, images, *sizes, blocks, *x.stride(), **common)
        else:
            pixel_backward[(programs,)](x, g, scale, kept, dx, parts, images, *sizes, blocks, *x.stride(), **common)
    return parts.view(cut.heads, -1).sum(dim=1)  # one after the other in a fixed order: the same bits every time


def _sizes(x: Tensor, cut: Geometry, chosen: Plan) -> tuple[tuple[int, ...], int, int]:
    """Return the kernels' sizes, blocks of rows a window, and the number of programs."""
    B, C, H, W = x.shape
    head_width = C // cut.heads
    windows = B * cut.heads * cut.rows * cut.columns
    if chosen.kernel == "pixel":
        sizes: tuple[int, ...] = (cut.heads, cut.rows, cut.columns, head_width)
    else:
        down, across = -(-H // cut.rows), -(-W // cut.columns)
        pixels = (down * across,) if chosen.kernel == "tile" else ()
        sizes = (cut.heads, cut.rows, cut.columns, across, *pixels, H, W, head_width)
    blocks = 1 if chosen.kernel == "tile" else -(-head_width // chosen.block_rows)
    return sizes, blocks, windows * blocks


def _common(x: Tensor, cut: Geometry, chosen: Plan) -> dict[str, Any]:
    """Return the kernels' constants."""
    if chosen.kernel == "pixel":
        return {
            "EPS": cut.eps,
            "BLOCK_ROWS": chosen.block_rows,
            "BLOCK_COLUMNS": chosen.block_columns,
        }
    common: dict[str, Any] = {
        "EPS": cut.eps,
        "COSINE": cut.cosine,
        "BLOCK_PIXELS": chosen.block_pixels,
        # in float32 three TF32 products keep float32's digits; half types do not read this
        "PRECISION": "tf32x3" if x.dtype == torch.float32 else "tf32",
    }
    if chosen.kernel == "tile":
        pixels = -(-x.shape[2] // cut.rows) * -(-x.shape[3] // cut.columns)
        return common | {"BLOCK_CHANNELS": chosen.block_rows, "WHOLE": pixels <= chosen.block_pixels}
    return common | {"BLOCK_ROWS": chosen.block_rows, "BLOCK_COLUMNS": chosen.block_columns}


def _on_device_of(x: Tensor) -> Any:
    """Triton starts kernels on the current device, which need not be that of x."""
    return torch.cuda.device_of(x) if x.is_cuda else nullcontext()
