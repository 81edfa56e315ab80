"""Where the pixels of a sparse global window lie in memory, for the Triton kernels.

Window (i, j) holds the pixels with row = i (mod rows) and column = j (mod columns). A window's pixel p is
row i + rows * (p // across), column j + columns * (p % across), where `across` is the number of regions across the
map. Pixels beyond the map are masked, so that no padded or permuted copy is made. Strides are in elements; the
offset of an image is 64 bits wide, all within an image 32.
"""

# Triton has no type annotations, and a kernel's arguments are none of Python's types
# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401  (the interpreter looks for it beside every function that it runs)

__all__ = ["pixel_offsets", "split_program"]


@triton.jit
def split_program(program, heads, rows, columns):
    """Return (image, head, i, j) of a window's number; j runs fastest, so that neighbours share cache lines."""
    j = program % columns
    program = program // columns
    i = program % rows
    program = program // rows
    return program // heads, program % heads, i, j


@triton.jit
def pixel_offsets(pixel, i, j, rows, columns, across, H, W, stride_h, stride_w):
    """Return the offsets of a window's pixels within a channel, and whether each lies on the map."""
    row = i + rows * (pixel // across)
    column = j + columns * (pixel % across)
    return row * stride_h + column * stride_w, (row < H) & (column < W)
