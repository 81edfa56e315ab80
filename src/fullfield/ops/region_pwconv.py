"""Region point-wise convolution (RPWConv): Dynamic PWConv inside every sparse global window.

Source: RaCNN (ICLR 2025 submission). A map is cut into regions of r x r pixels; the pixels at one relative
position in all regions form one *sparse global window*: window (i, j) holds the pixels with row = i and
column = j modulo r. w is shared inside a window and differs between windows and inputs. There are r*r windows
of n = (H/r)(W/r) pixels; cost 2 * H*W * C * d MACs and r*r * C * d softmax elements (d channels a head).

Its reach is through the weights: y at a pixel is a mix of that pixel's own channels, and the mixing weights see
the whole 1/r^2 lattice of its window. Facts that the tests hold: padding with zeros to a multiple of r is exact
(zeros change neither Gram matrix nor norm), and RPWConv commutes with circular shifts when r divides H and W.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fullfield.ops.checks import check_map, check_region_size, check_scale
from fullfield.ops.dispatch import forced_path, one_of
from fullfield.ops.dynamic_pwconv import EPS, MAX_SCALE, SIMILARITIES, fastest_path, mix_channels, mix_windows
from fullfield.ops.kernels import is_fastest, region_pwconv_triton
from fullfield.ops.layout import cells, exported_cells, is_channels_last, padded

__all__ = ["region_pwconv"]


def region_pwconv(
    x: Tensor,
    scale: Tensor,
    *,
    region_size: int = 7,
    heads: int = 1,
    similarity: str = "cosine",
    path: str | None = None,
) -> Tensor:
    """Mix channels inside every sparse global window (RaCNN, RPWConv).

    Args:
        x: (B, C, H, W) with any H, W >= 1, any floating dtype, NCHW or channels_last.
        scale: (heads,), the factor s of the logits; clamped to [-60, 60] for the cosine.
        region_size: r; with r = 1 the whole map is one window, and the operator is `dynamic_pwconv`. Where H or
            W is smaller than r, the windows that have no pixel do not exist.
        heads: Groups of consecutive channels that are mixed among themselves; 1 is the source's operator.
        similarity: "cosine" (source) or "inner".
        path: "blocked", "sdpa", "bmm", "reference", "triton" (on a GPU), or None for the measured rule.

    Returns:
        (B, C, H, W), same dtype and memory format as `x`.

    Raises:
        ValueError: Shapes, heads, region size, similarity or path do not fit, or a forced path cannot run here.
        TypeError: `x` or `scale` is not floating point, `region_size` is not an int.
    """
    check_map(x)
    check_region_size(region_size)
    check_scale(scale, x.shape[1], heads)
    one_of("similarity", similarity, SIMILARITIES)
    if torch.compiler.is_exporting() and path is None:
        return _exported(x, scale, region_size, heads, similarity)
    rows, columns = cells(x.shape[2], region_size), cells(x.shape[3], region_size)
    pixels = -(-x.shape[2] // rows) * -(-x.shape[3] // columns)
    path = forced_path("region_pwconv", path)
    if path == "triton" or (path is None and is_fastest(x, rows, columns, heads, similarity)):
        s = scale.clamp(-MAX_SCALE, MAX_SCALE) if similarity == "cosine" else scale
        return region_pwconv_triton(x, s, rows, columns, heads, similarity, EPS)
    path = path or fastest_path(x, heads, pixels)
    if path == "reference":
        return _reference(x, scale, rows, columns, heads, similarity)
    if path == "blocked":
        return _blocked(x, scale, rows, columns, heads, similarity)
    return _windowed(x, scale, rows, columns, heads, similarity, path)


def _reference(x: Tensor, scale: Tensor, rows: int, columns: int, heads: int, similarity: str) -> Tensor:
    """Read as the definition: one Dynamic PWConv a window, each window a strided slice of the map."""
    y = torch.empty_like(x)
    for i in range(rows):
        for j in range(columns):
            window = x[:, :, i::rows, j::columns]
            pixels = window.shape[2] * window.shape[3]
            window_NGdn = window.reshape(x.shape[0], heads, x.shape[1] // heads, pixels)
            y[:, :, i::rows, j::columns] = mix_channels(window_NGdn, scale, similarity, "reference").view(window.shape)
    return y


def _windowed(x: Tensor, scale: Tensor, rows: int, columns: int, heads: int, similarity: str, path: str) -> Tensor:
    """All windows at once: pad to whole regions, lay every window's pixels side by side, mix, lay back."""
    B, C, H, W = x.shape
    nh, nw = -(-H // rows), -(-W // columns)  # regions down and across
    x_pad = F.pad(x, (0, nw * columns - W, 0, nh * rows - H))
    x_GdnRnC = x_pad.view(B, heads, C // heads, nh, rows, nw, columns)
    x_NGdn = x_GdnRnC.permute(0, 4, 6, 1, 2, 3, 5).reshape(B * rows * columns, heads, C // heads, nh * nw)
    y_NGdn = mix_channels(x_NGdn, scale, similarity, path)
    y_BRC = y_NGdn.view(B, rows, columns, C, nh, nw)
    if is_channels_last(x):
        y = y_BRC.permute(0, 4, 1, 5, 2, 3).reshape(B, nh * rows, nw * columns, C)[:, :H, :W]
        return y.contiguous().permute(0, 3, 1, 2)
    return y_BRC.permute(0, 3, 4, 1, 5, 2).reshape(B, C, nh * rows, nw * columns)[:, :, :H, :W].contiguous()


def _blocked(x: Tensor, scale: Tensor, rows: int, columns: int, heads: int, similarity: str) -> Tensor:
    """All windows a block at a time, channels running fastest, so that channels_last is cut without a transpose."""
    B, C, H, W = x.shape
    nh, nw = -(-H // rows), -(-W // columns)
    x_pad = F.pad(x, (0, nw * columns - W, 0, nh * rows - H))
    x_BHWC = x_pad.permute(0, 2, 3, 1).reshape(B, nh, rows, nw, columns, heads, C // heads)
    x_Mnd = x_BHWC.permute(0, 2, 4, 5, 1, 3, 6).reshape(B * rows * columns * heads, nh * nw, C // heads)
    y_Mnd = mix_windows(x_Mnd, scale, similarity)
    y_BRGC = y_Mnd.view(B, rows, columns, heads, nh, nw, C // heads)
    y_BHWC = y_BRGC.permute(0, 4, 1, 5, 2, 3, 6).reshape(B, nh * rows, nw * columns, C)
    y = y_BHWC[:, :H, :W].permute(0, 3, 1, 2)
    return y.contiguous(memory_format=torch.channels_last if is_channels_last(x) else torch.contiguous_format)


def _exported(x: Tensor, scale: Tensor, region_size: int, heads: int, similarity: str) -> Tensor:
    """`_windowed` for exported graphs: without a branch on a free size (see `exported_cells`), and of few axes.

    A crop is a negative padding, because a slice asks whether it is whole. Windows are laid out by two exchanges of
    neighbouring axes: runtimes are many times slower at one permutation of seven axes, and some know only five.
    """
    B, C, H, W = x.shape
    if region_size == 1:
        return mix_channels(x.reshape(B, heads, C // heads, H * W), scale, similarity, "bmm").reshape(x.shape)
    (rows, nh), (columns, nw) = exported_cells(H, region_size), exported_cells(W, region_size)
    right, below = nw * columns - W, nh * rows - H
    # channels stay an axis of their own: of a merged one the tracer could not prove its guards for named sizes
    x_CRc = padded(x, right, below).view(B, C, nh * rows, nw, columns).transpose(3, 4)
    x_RCn = x_CRc.reshape(B, C, nh, rows * columns, nw).permute(0, 3, 1, 2, 4)
    x_NGdn = x_RCn.reshape(B * rows * columns, heads, C // heads, nh * nw)
    y_NGdn = mix_channels(x_NGdn, scale, similarity, "bmm")
    y_CRn = y_NGdn.view(B, rows * columns, C, nh, nw).permute(0, 2, 3, 1, 4).reshape(B, C, nh * rows, columns, nw)
    return padded(y_CRn.transpose(3, 4).reshape(B, C, nh * rows, nw * columns), -right, -below)
