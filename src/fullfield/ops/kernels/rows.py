"""region_pwconv where a head's (d, d) map does not fit one program: a block of rows, a walk over the columns.

One program is one block of rows of one window of one head, as in FlashAttention (Dao et al., 2022): the window's
pixels all fit (n <= 128), the maximum of a row runs along, and no map is stored. Forward keeps y and, in float32,
L = log2 sum_j exp(s * cos_ij). Backward computes the equations of `tile.py` by blocks, with delta_j = g_j . y_j made
again for every block of columns; programs write their own rows of dx and their own part of ds: no atomics.
"""

# Triton has no type annotations, and a kernel's arguments are none of Python's types
# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from fullfield.ops.kernels.addressing import pixel_offsets, split_program

__all__ = ["rows_backward", "rows_forward"]

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _inverse_norm(x, EPS: tl.constexpr, COSINE: tl.constexpr):
    """Return 1 / |x_i| of the rows of x, or ones for the inner product."""
    wide = x.to(tl.float32)
    squared = tl.sum(wide * wide, axis=1)
    return tl.rsqrt(squared + EPS) if COSINE else tl.full(squared.shape, 1.0, tl.float32)


@triton.jit
def rows_forward(
    x_ptr,
    scale_ptr,
    y_ptr,
    log_sum_ptr,
    heads,
    rows,
    columns,
    across,
    H,
    W,
    head_width,
    blocks,
    stride_b,
    stride_c,
    stride_h,
    stride_w,
    EPS: tl.constexpr,
    COSINE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write y and L of a block of rows. Grid: images * heads * windows * blocks of rows."""
    block, window = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    image, head, i, j = split_program(window, heads, rows, columns)
    offset, on_map = pixel_offsets(tl.arange(0, BLOCK_PIXELS), i, j, rows, columns, across, H, W, stride_h, stride_w)
    base = image.to(tl.int64) * stride_b + (head * head_width) * stride_c
    row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    where = base + (row * stride_c)[:, None] + offset[None, :]
    mask = (row < head_width)[:, None] & on_map[None, :]
    x_i = tl.load(x_ptr + where, mask=mask, other=0.0)
    row_scale = _inverse_norm(x_i, EPS, COSINE) * (tl.load(scale_ptr + head) * LOG2_E)

    largest = tl.full((BLOCK_ROWS,), float("-inf"), tl.float32)
    row_sum = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    y = tl.zeros((BLOCK_ROWS, BLOCK_PIXELS), dtype=tl.float32)
    for start in range(0, head_width, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)
        where_j = base + (column * stride_c)[:, None] + offset[None, :]
        x_j = tl.load(x_ptr + where_j, mask=(column < head_width)[:, None] & on_map[None, :], other=0.0)
        logits = tl.dot(x_i, tl.trans(x_j), input_precision=PRECISION) * row_scale[:, None]
        logits = logits * _inverse_norm(x_j, EPS, COSINE)[None, :]
        logits = tl.where((column < head_width)[None, :], logits, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(logits, axis=1))
        e = tl.exp2(logits - new_largest[:, None])
        shrink = tl.exp2(largest - new_largest)
        row_sum = row_sum * shrink + tl.sum(e, axis=1)
        y = tl.dot(e.to(x_j.dtype), x_j, y * shrink[:, None], input_precision=PRECISION)
        largest = new_largest
    y = y * (1.0 / row_sum)[:, None]
    tl.store(y_ptr + where, y.to(x_i.dtype), mask=mask)
    log_sum_offset = window.to(tl.int64) * head_width + row
    tl.store(log_sum_ptr + log_sum_offset, largest + tl.log2(row_sum), mask=row < head_width)


@triton.jit
def rows_backward(
    x_ptr,
    g_ptr,
    scale_ptr,
    y_ptr,
    log_sum_ptr,
    dx_ptr,
    ds_ptr,
    images,
    heads,
    rows,
    columns,
    across,
    H,
    W,
    head_width,
    blocks,
    stride_b,
    stride_c,
    stride_h,
    stride_w,
    EPS: tl.constexpr,
    COSINE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write dx of a block of rows, and its part of ds at (head, image, window, block). Grid as in rows_forward."""
    block, window = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    image, head, i, j = split_program(window, heads, rows, columns)
    offset, on_map = pixel_offsets(tl.arange(0, BLOCK_PIXELS), i, j, rows, columns, across, H, W, stride_h, stride_w)
    base = image.to(tl.int64) * stride_b + (head * head_width) * stride_c
    log_sums = log_sum_ptr + window.to(tl.int64) * head_width
    row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    where = base + (row * stride_c)[:, None] + offset[None, :]
    mask = (row < head_width)[:, None] & on_map[None, :]
    x_i = tl.load(x_ptr + where, mask=mask, other=0.0)
    g_i = tl.load(g_ptr + where, mask=mask, other=0.0)
    y_i = tl.load(y_ptr + where, mask=mask, other=0.0)
    delta_i = tl.sum(g_i.to(tl.float32) * y_i.to(tl.float32), axis=1)
    inverse_norm_i = _inverse_norm(x_i, EPS, COSINE)
    # a row or column that does not exist has an infinite sum, so that its weights are zero
    log_sum_i = tl.load(log_sums + row, mask=row < head_width, other=float("inf"))
    scale = tl.load(scale_ptr + head)

    dx = tl.zeros((BLOCK_ROWS, BLOCK_PIXELS), dtype=tl.float32)
    rho = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    for start in range(0, head_width, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)
        where_j = base + (column * stride_c)[:, None] + offset[None, :]
        mask_j = (column < head_width)[:, None] & on_map[None, :]
        x_j = tl.load(x_ptr + where_j, mask=mask_j, other=0.0)
        g_j = tl.load(g_ptr + where_j, mask=mask_j, other=0.0)
        y_j = tl.load(y_ptr + where_j, mask=mask_j, other=0.0)
        delta_j = tl.sum(g_j.to(tl.float32) * y_j.to(tl.float32), axis=1)
        inverse_norm_j = _inverse_norm(x_j, EPS, COSINE)
        log_sum_j = tl.load(log_sums + column, mask=column < head_width, other=float("inf"))

        similarity = tl.dot(x_i, tl.trans(x_j), input_precision=PRECISION)
        similarity = similarity * inverse_norm_i[:, None] * inverse_norm_j[None, :]
        logits = similarity * (scale * LOG2_E)
        p = tl.exp2(logits - log_sum_i[:, None])
        p_transposed = tl.exp2(logits - log_sum_j[None, :])
        m = p * (tl.dot(g_i, tl.trans(x_j), input_precision=PRECISION) - delta_i[:, None])
        m += p_transposed * (tl.dot(x_i, tl.trans(g_j), input_precision=PRECISION) - delta_j[None, :])
        rho += tl.sum(m * similarity, axis=1)
        q = m * (scale * inverse_norm_i)[:, None] * inverse_norm_j[None, :]
        dx = tl.dot(p_transposed.to(x_j.dtype), g_j, dx, input_precision=PRECISION)
        if x_j.dtype == tl.float16:  # float16 lacks the range of Q
            dx = tl.dot(q, x_j.to(tl.float32), dx, input_precision="tf32")
        else:
            dx = tl.dot(q.to(x_j.dtype), x_j, dx, input_precision=PRECISION)
    if COSINE:
        dx -= (scale * inverse_norm_i * inverse_norm_i * rho)[:, None] * x_i.to(tl.float32)
    tl.store(dx_ptr + where, dx.to(x_i.dtype), mask=mask)
    part = (((head * images + image) * rows + i) * columns + j) * blocks + block
    tl.store(ds_ptr + part, 0.5 * tl.sum(rho, axis=0))
