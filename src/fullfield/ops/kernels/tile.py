"""region_pwconv where a head's (d, d) map fits the registers of one program: d <= 64, any number of pixels.

One program is one window of one head. Forward, with x the (d, n) window, s the scale and E symmetric:

    E = exp(s * x_hat x_hat^T),  l_i = sum_j E_ij,  y = (E / l) x

Raw x enters the matrix product, and the map is scaled by norms in float32. For the cosine no running maximum is
needed: |s| <= 60 keeps every number of E and l normal in float32; weights are divided by l before they are rounded.

Backward, with g the gradient of y, P = E / l and everything else made again from x (nothing but x is kept):

    delta_i = sum_j P_ij (g_i . x_j),     M_ij = P_ij (g_i . x_j - delta_i) + P_ji (x_i . g_j - delta_j)
    dx_i = sum_j P_ji g_j + s / |x_i| (sum_j M_ij x_hat_j - x_hat_i rho_i),     rho_i = sum_j M_ij cos_ij
    ds = 1/2 sum_i rho_i

where rho_i = x_hat_i . n_i needs no pass over pixels. Each program writes its own part of dx and of ds: no atomics.
"""

# Triton has no type annotations, and a kernel's arguments are none of Python's types
# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from fullfield.ops.kernels.addressing import pixel_offsets, split_program

__all__ = ["tile_backward", "tile_forward"]

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _exponentials(gram, squared_norm, scale, channel_exists, EPS: tl.constexpr, COSINE: tl.constexpr):
    """Return (E, l, offsets, inverse norms, similarities); E_ij = exp(s * similarity_ij - offset_i)."""
    if COSINE:
        inverse_norm = tl.rsqrt(squared_norm + EPS)
        similarity = gram * inverse_norm[:, None] * inverse_norm[None, :]
    else:
        inverse_norm = tl.full(squared_norm.shape, 1.0, tl.float32)
        similarity = gram
    logits = tl.where(channel_exists[None, :], similarity * (scale * LOG2_E), float("-inf"))
    offset = tl.zeros_like(squared_norm) if COSINE else tl.max(logits, axis=1)
    e = tl.exp2(logits - offset[:, None])
    return e, tl.sum(e, axis=1), offset, inverse_norm, similarity


@triton.jit
def tile_forward(
    x_ptr,
    scale_ptr,
    y_ptr,
    heads,
    rows,
    columns,
    across,
    pixels,
    H,
    W,
    head_width,
    stride_b,
    stride_c,
    stride_h,
    stride_w,
    EPS: tl.constexpr,
    COSINE: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write y of one window of one head. Grid: images * heads * windows. WHOLE: one step holds all pixels."""
    image, head, i, j = split_program(tl.program_id(0), heads, rows, columns)
    channel = tl.arange(0, BLOCK_CHANNELS)
    channel_exists = channel < head_width
    base = image.to(tl.int64) * stride_b
    channel_offset = (head * head_width + channel) * stride_c
    step = tl.arange(0, BLOCK_PIXELS)
    scale = tl.load(scale_ptr + head)

    gram = tl.zeros((BLOCK_CHANNELS, BLOCK_CHANNELS), dtype=tl.float32)
    squared_norm = tl.zeros((BLOCK_CHANNELS,), dtype=tl.float32)
    if WHOLE:
        offset, on_map = pixel_offsets(step, i, j, rows, columns, across, H, W, stride_h, stride_w)
        where = base + channel_offset[:, None] + offset[None, :]
        mask = channel_exists[:, None] & on_map[None, :]
        x = tl.load(x_ptr + where, mask=mask, other=0.0)
        wide = x.to(tl.float32)
        squared_norm = tl.sum(wide * wide, axis=1)
        gram = tl.dot(x, tl.trans(x), input_precision=PRECISION)
        e, row_sum, _offset, _inverse, _similarity = _exponentials(
            gram, squared_norm, scale, channel_exists, EPS, COSINE
        )
        w = e * (1.0 / row_sum)[:, None]
        y = tl.dot(w.to(x.dtype), x, input_precision=PRECISION)
        tl.store(y_ptr + where, y.to(x.dtype), mask=mask)
    else:
        for start in range(0, pixels, BLOCK_PIXELS):
            offset, on_map = pixel_offsets(start + step, i, j, rows, columns, across, H, W, stride_h, stride_w)
            where = base + channel_offset[:, None] + offset[None, :]
            x = tl.load(x_ptr + where, mask=channel_exists[:, None] & on_map[None, :], other=0.0)
            wide = x.to(tl.float32)
            squared_norm += tl.sum(wide * wide, axis=1)
            gram = tl.dot(x, tl.trans(x), gram, input_precision=PRECISION)
        e, row_sum, _offset, _inverse, _similarity = _exponentials(
            gram, squared_norm, scale, channel_exists, EPS, COSINE
        )
        w = (e * (1.0 / row_sum)[:, None]).to(x_ptr.dtype.element_ty)
        for start in range(0, pixels, BLOCK_PIXELS):
            offset, on_map = pixel_offsets(start + step, i, j, rows, columns, across, H, W, stride_h, stride_w)
            where = base + channel_offset[:, None] + offset[None, :]
            mask = channel_exists[:, None] & on_map[None, :]
            x = tl.load(x_ptr + where, mask=mask, other=0.0)
            y = tl.dot(w, x, input_precision=PRECISION)
            tl.store(y_ptr + where, y.to(x.dtype), mask=mask)


@triton.jit
def _mixing_gradients(gram, gx, xg, squared_norm, scale, channel_exists, EPS: tl.constexpr, COSINE: tl.constexpr):
    """Return (P^T, Q, factor, part of ds) with dx = P^T g + Q x - factor x."""
    e, row_sum, offset, inverse_norm, similarity = _exponentials(gram, squared_norm, scale, channel_exists, EPS, COSINE)
    inverse_sum = 1.0 / row_sum
    p = e * inverse_sum[:, None]
    if COSINE:  # E is symmetric
        p_transposed = e * inverse_sum[None, :]
    else:
        log_sum = offset + tl.log2(row_sum)
        p_transposed = tl.exp2(similarity * (scale * LOG2_E) - log_sum[None, :])
        p_transposed = tl.where(channel_exists[None, :], p_transposed, 0.0)
    delta = tl.sum(p * gx, axis=1)
    m = p * (gx - delta[:, None]) + p_transposed * (xg - delta[None, :])
    rho = tl.sum(m * similarity, axis=1)
    q = m * (scale * inverse_norm)[:, None] * inverse_norm[None, :]
    factor = scale * inverse_norm * inverse_norm * rho if COSINE else tl.zeros_like(rho)
    return p_transposed, q, factor, 0.5 * tl.sum(tl.where(channel_exists, rho, 0.0), axis=0)


@triton.jit
def _input_gradient(p_transposed, q, factor, x, g, PRECISION: tl.constexpr):
    """Return dx of a block of pixels. float16 lacks the range of Q, so there that product is in TF32."""
    wide = x.to(tl.float32)
    dx = tl.dot(p_transposed.to(x.dtype), g, input_precision=PRECISION)
    if x.dtype == tl.float16:
        dx = tl.dot(q, wide, dx, input_precision="tf32")
    else:
        dx = tl.dot(q.to(x.dtype), x, dx, input_precision=PRECISION)
    return dx - factor[:, None] * wide


@triton.jit
def tile_backward(
    x_ptr,
    g_ptr,
    scale_ptr,
    dx_ptr,
    ds_ptr,
    images,
    heads,
    rows,
    columns,
    across,
    pixels,
    H,
    W,
    head_width,
    stride_b,
    stride_c,
    stride_h,
    stride_w,
    EPS: tl.constexpr,
    COSINE: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write dx, and the part of ds at (head, image, window), of one window of one head. Grid as in tile_forward."""
    image, head, i, j = split_program(tl.program_id(0), heads, rows, columns)
    channel = tl.arange(0, BLOCK_CHANNELS)
    channel_exists = channel < head_width
    base = image.to(tl.int64) * stride_b
    channel_offset = (head * head_width + channel) * stride_c
    step = tl.arange(0, BLOCK_PIXELS)
    scale = tl.load(scale_ptr + head)
    part = ((head * images + image) * rows + i) * columns + j

    gram = tl.zeros((BLOCK_CHANNELS, BLOCK_CHANNELS), dtype=tl.float32)
    gx = tl.zeros((BLOCK_CHANNELS, BLOCK_CHANNELS), dtype=tl.float32)
    xg = tl.zeros((BLOCK_CHANNELS, BLOCK_CHANNELS), dtype=tl.float32)
    squared_norm = tl.zeros((BLOCK_CHANNELS,), dtype=tl.float32)
    if WHOLE:
        offset, on_map = pixel_offsets(step, i, j, rows, columns, across, H, W, stride_h, stride_w)
        where = base + channel_offset[:, None] + offset[None, :]
        mask = channel_exists[:, None] & on_map[None, :]
        x = tl.load(x_ptr + where, mask=mask, other=0.0)
        g = tl.load(g_ptr + where, mask=mask, other=0.0)
        wide = x.to(tl.float32)
        squared_norm = tl.sum(wide * wide, axis=1)
        gram = tl.dot(x, tl.trans(x), input_precision=PRECISION)
        gx = tl.dot(g, tl.trans(x), input_precision=PRECISION)
        xg = tl.dot(x, tl.trans(g), input_precision=PRECISION)
        p_transposed, q, factor, ds = _mixing_gradients(gram, gx, xg, squared_norm, scale, channel_exists, EPS, COSINE)
        dx = _input_gradient(p_transposed, q, factor, x, g, PRECISION)
        tl.store(dx_ptr + where, dx.to(x.dtype), mask=mask)
        tl.store(ds_ptr + part, ds)
    else:
        for start in range(0, pixels, BLOCK_PIXELS):
            offset, on_map = pixel_offsets(start + step, i, j, rows, columns, across, H, W, stride_h, stride_w)
            where = base + channel_offset[:, None] + offset[None, :]
            mask = channel_exists[:, None] & on_map[None, :]
            x = tl.load(x_ptr + where, mask=mask, other=0.0)
            g = tl.load(g_ptr + where, mask=mask, other=0.0)
            wide = x.to(tl.float32)
            squared_norm += tl.sum(wide * wide, axis=1)
            gram = tl.dot(x, tl.trans(x), gram, input_precision=PRECISION)
            gx = tl.dot(g, tl.trans(x), gx, input_precision=PRECISION)
            xg = tl.dot(x, tl.trans(g), xg, input_precision=PRECISION)
        p_transposed, q, factor, ds = _mixing_gradients(gram, gx, xg, squared_norm, scale, channel_exists, EPS, COSINE)
        tl.store(ds_ptr + part, ds)
        for start in range(0, pixels, BLOCK_PIXELS):
            offset, on_map = pixel_offsets(start + step, i, j, rows, columns, across, H, W, stride_h, stride_w)
            where = base + channel_offset[:, None] + offset[None, :]
            mask = channel_exists[:, None] & on_map[None, :]
            x = tl.load(x_ptr + where, mask=mask, other=0.0)
            g = tl.load(g_ptr + where, mask=mask, other=0.0)
            dx = _input_gradient(p_transposed, q, factor, x, g, PRECISION)
            tl.store(dx_ptr + where, dx.to(x.dtype), mask=mask)
