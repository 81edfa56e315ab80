"""region_pwconv where every window is a single pixel (7 x 7 maps at r = 7): no matrix product, no map.

With u = x / sqrt(x^2 + eps), a number in (-1, 1), cos_ij = u_i u_j, so that with the cosine

    y_i = sum_j exp(s u_i u_j) x_j / sum_j exp(s u_i u_j)

Far from zero u is +1 or -1 and y takes two values, but channels near zero are between, so the sum over j is taken as
it stands. In the backward pass the projection that `tile.py` subtracts has the closed form 1 - u^2 = eps / (x^2 + eps),
which loses no digits. For the same reason forward keeps y in float32: near zero gradients grow by 1 / sqrt(eps), and
the rounding of y with them. |s| <= 60 keeps every exponential and sum a normal number, so no maximum is needed.
"""

# Triton has no type annotations, and a kernel's arguments are none of Python's types
# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from fullfield.ops.kernels.addressing import split_program

__all__ = ["pixel_backward", "pixel_forward"]

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def pixel_forward(
    x_ptr,
    scale_ptr,
    y_ptr,
    kept_ptr,
    heads,
    rows,
    columns,
    head_width,
    blocks,
    stride_b,
    stride_c,
    stride_h,
    stride_w,
    EPS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Write y, and keep L = log2 sum_j exp(s u_i u_j) and y in float32. Grid: images * heads * pixels * blocks."""
    block, window = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    image, head, i, j = split_program(window, heads, rows, columns)
    base = image.to(tl.int64) * stride_b + (head * head_width) * stride_c + i * stride_h + j * stride_w
    row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    x_i = tl.load(x_ptr + base + row * stride_c, mask=row < head_width, other=0.0).to(tl.float32)
    row_scale = tl.load(scale_ptr + head) * LOG2_E * x_i * tl.rsqrt(x_i * x_i + EPS)

    row_sum = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    y = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    for start in range(0, head_width, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)
        x_j = tl.load(x_ptr + base + column * stride_c, mask=column < head_width, other=0.0).to(tl.float32)
        u_j = x_j * tl.rsqrt(x_j * x_j + EPS)
        e = tl.where((column < head_width)[None, :], tl.exp2(row_scale[:, None] * u_j[None, :]), 0.0)
        row_sum += tl.sum(e, axis=1)
        y += tl.sum(e * x_j[None, :], axis=1)
    y = y * (1.0 / row_sum)
    tl.store(y_ptr + base + row * stride_c, y.to(y_ptr.dtype.element_ty), mask=row < head_width)
    kept = kept_ptr + window.to(tl.int64) * (2 * head_width)
    tl.store(kept + row, tl.log2(row_sum), mask=row < head_width)
    tl.store(kept + head_width + row, y, mask=row < head_width)


@triton.jit
def pixel_backward(
    x_ptr,
    g_ptr,
    scale_ptr,
    kept_ptr,
    dx_ptr,
    ds_ptr,
    images,
    heads,
    rows,
    columns,
    head_width,
    blocks,
    stride_b,
    stride_c,
    stride_h,
    stride_w,
    EPS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Write dx of a block of rows, and its part of ds at (head, image, pixel, block). Grid as in pixel_forward."""
    block, window = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    image, head, i, j = split_program(window, heads, rows, columns)
    base = image.to(tl.int64) * stride_b + (head * head_width) * stride_c + i * stride_h + j * stride_w
    log_sums = kept_ptr + window.to(tl.int64) * (2 * head_width)
    outputs = log_sums + head_width
    row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    where = base + row * stride_c
    x_i = tl.load(x_ptr + where, mask=row < head_width, other=0.0).to(tl.float32)
    g_i = tl.load(g_ptr + where, mask=row < head_width, other=0.0).to(tl.float32)
    y_i = tl.load(outputs + row, mask=row < head_width, other=0.0)
    log_sum_i = tl.load(log_sums + row, mask=row < head_width, other=float("inf"))
    inverse_norm = tl.rsqrt(x_i * x_i + EPS)
    u_i = x_i * inverse_norm
    scale = tl.load(scale_ptr + head)

    dx = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    n_i = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    for start in range(0, head_width, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)
        where_j = base + column * stride_c
        x_j = tl.load(x_ptr + where_j, mask=column < head_width, other=0.0).to(tl.float32)
        g_j = tl.load(g_ptr + where_j, mask=column < head_width, other=0.0).to(tl.float32)
        y_j = tl.load(outputs + column, mask=column < head_width, other=0.0)
        log_sum_j = tl.load(log_sums + column, mask=column < head_width, other=float("inf"))
        u_j = x_j * tl.rsqrt(x_j * x_j + EPS)
        logits = (scale * LOG2_E * u_i)[:, None] * u_j[None, :]
        p = tl.exp2(logits - log_sum_i[:, None])
        p_transposed = tl.exp2(logits - log_sum_j[None, :])
        m = p * (g_i[:, None] * (x_j[None, :] - y_i[:, None]))
        m += p_transposed * (g_j[None, :] * (x_i[:, None] - y_j[None, :]))
        n_i += tl.sum(m * u_j[None, :], axis=1)
        dx += tl.sum(p_transposed * g_j[None, :], axis=1)
    one_minus_u_squared = EPS * inverse_norm * inverse_norm
    dx += scale * inverse_norm * one_minus_u_squared * n_i
    tl.store(dx_ptr + where, dx.to(dx_ptr.dtype.element_ty), mask=row < head_width)
    part = (((head * images + image) * rows + i) * columns + j) * blocks + block
    tl.store(ds_ptr + part, 0.5 * tl.sum(u_i * n_i, axis=0))
