"""The pictures of a run report: training curves as inline SVG, large confusion matrices as PNG.

Both follow the page's theme rather than bake one in. Curves are drawn in stand-in colours that are then
replaced by `currentColor` and the page's CSS variables `--series-1`, `--series-2` and `--line`; text stays
text in the page's own font. The matrix is transparent where it is empty. Matplotlib comes with the extra
`train`, is imported on first use and is used without pyplot, so no display, backend or global figure is
touched.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from fullfield.errors import MissingExtraError

__all__ = ["confusion_png", "curves_svg", "row_shares"]

# Colours that no figure needs: each is a stand-in for a CSS value of the page.
_TEXT, _LINE = "#010203", "#010204"
_SERIES = ("#010205", "#010206")
_CSS = {
    _TEXT: "currentColor",
    _LINE: "var(--line)",
    _SERIES[0]: "var(--series-1)",
    _SERIES[1]: "var(--series-2)",
}

# Both read on white as on near-black: the page lays them over its background by opacity alone.
_RIGHT_RGB, _WRONG_RGB = (47, 111, 208), (222, 92, 32)


def curves_svg(
    epochs: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    name: str,
    description: str,
    percent: bool = False,
    baseline: tuple[str, float] | None = None,
) -> str | None:
    """Draw one or two curves over the epochs as an SVG element to be put into an HTML page.

    Values that are not finite leave a gap. A point without a finite neighbour is marked, so that a run of
    one epoch shows.

    Args:
        epochs: The x axis, one value an epoch.
        series: Label to values, as long as `epochs`; at most two. A series without a finite value is left out.
        name: Distinguishes the element's ids from those of other figures of the page.
        description: What the figure shows, for readers who cannot see it.
        percent: The values are fractions and the axis is in percent.
        baseline: Label and height of a dashed horizontal line.

    Returns:
        The `<svg>` element, or `None` when no value is finite.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    scale = 100.0 if percent else 1.0
    finite = {}
    for label, values in series.items():
        y = np.asarray(values, dtype=np.float64) * scale
        y[~np.isfinite(y)] = np.nan
        if not np.isnan(y).all():
            finite[label] = y
    if not finite:
        return None
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise MissingExtraError(
            "A report's curves need matplotlib, which is not installed; pip install 'fullfield[train]'"
        ) from error

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,  # ids differ between figures and are the same in every run
        "font.size": 9,
        "font.family": "sans-serif",
        "text.color": _TEXT,
        "axes.labelcolor": _TEXT,
        "axes.edgecolor": _LINE,
        "xtick.color": _LINE,
        "ytick.color": _LINE,
        "xtick.labelcolor": _TEXT,
        "ytick.labelcolor": _TEXT,
        "grid.color": _LINE,
    }
    x = np.asarray(epochs, dtype=np.float64)
    with mpl.rc_context(style):
        figure = Figure(figsize=(5.0, 2.9), layout="constrained")
        axes = figure.add_subplot()
        for (label, y), colour in zip(finite.items(), _SERIES, strict=False):
            axes.plot(x, y, color=colour, label=label, linewidth=1.6, marker="o", markersize=3.2, markevery=_marked(y))
        if baseline is not None and np.isfinite(baseline[1]):
            label, height = baseline
            axes.axhline(height * scale, color=_TEXT, linewidth=0.9, linestyle=(0, (4, 3)), label=label)
        if percent:
            axes.set_ylim(0, 102)
            axes.yaxis.set_major_formatter("{x:g} %")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if x[0] == x[-1]:
            axes.set_xlim(x[0] - 1, x[0] + 1)
            axes.set_xticks([x[0]])
        axes.set_xlabel("epoch")
        axes.grid(axis="y", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        figure.legend(loc="outside upper left", ncols=3, frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    return _themed(buffer.getvalue(), description)


def _marked(y: npt.NDArray[np.float64]) -> list[int]:
    """Return the indices of the points to mark: all of a short curve, only lone ones of a long curve."""
    known = np.isfinite(y)
    if y.size > 40:
        beside = np.zeros_like(known)
        beside[1:] |= known[:-1]
        beside[:-1] |= known[1:]
        known &= ~beside
    return [int(i) for i in np.flatnonzero(known)]


def _themed(svg: str, description: str) -> str:
    """Turn a Matplotlib SVG file into an element that takes colours and font from the page around it."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", svg, flags=re.DOTALL)
    # Namespaces are implied inside HTML; ids of groups repeat in every figure and nothing refers to them.
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for stand_in, css in _CSS.items():
        svg = svg.replace(stand_in, css)
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", svg[: svg.index(">")])
    return f'{head} role="img" aria-label="{html.escape(description)}"{svg[svg.index(">") :]}'.strip()


def row_shares(confusion: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Divide each row of a confusion matrix by its sum; a row without images stays zero.

    Args:
        confusion: (n, n) counts, rows true, columns predicted.

    Returns:
        (n, n) shares in 0 to 1.
    """
    total = confusion.sum(axis=1, keepdims=True)
    shares: npt.NDArray[np.float64] = confusion / np.maximum(total, 1)
    return shares


def confusion_png(confusion: npt.NDArray[np.int64], *, side: int = 640) -> tuple[bytes, int]:
    """Draw a confusion matrix as a PNG: opacity is the share of the row, blue is right and orange is wrong.

    A cell has at least two pixels. Where that leaves too few cells, one cell stands for k × k classes and
    shows the strongest of them, so that single confusions among a thousand classes are still seen.

    Args:
        confusion: (n, n) counts, rows true, columns predicted.
        side: Width and height to aim for, in pixels; every cell has the same whole number of pixels.

    Returns:
        The bytes of the PNG, and k.
    """
    n = len(confusion)
    k = -(-n // (side // 2))
    # The square root and the floor of the opacity keep one wrong image of a hundred visible.
    level = np.ceil(np.sqrt(row_shares(confusion)) * 127).astype(np.uint8)  # 0 where nothing was counted
    diagonal = np.eye(n, dtype=bool)
    right, wrong = _strongest(level * diagonal, k), _strongest(level * ~diagonal, k)
    # Palette: 0 is empty, 1..127 right, 129..255 wrong.
    picture = Image.fromarray(np.where((wrong > 0) & (right == 0), wrong + 128, right).astype(np.uint8))
    picture.putpalette(_RIGHT_RGB * 128 + _WRONG_RGB * 128)
    cell = max(1, side // len(right))
    picture = picture.resize((picture.width * cell, picture.height * cell), Image.Resampling.NEAREST)
    opacity = bytes([0, *(60 + 195 * i // 127 for i in range(1, 128))])
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True, transparency=opacity * 2)
    return buffer.getvalue(), k


def _strongest(level: npt.NDArray[np.uint8], k: int) -> npt.NDArray[np.uint8]:
    """Take the maximum of each k × k block of an (n, n) array; the last blocks may be smaller."""
    starts = np.arange(0, len(level), k)
    rows: npt.NDArray[np.uint8] = np.maximum.reduceat(level, starts, axis=0)
    blocks: npt.NDArray[np.uint8] = np.maximum.reduceat(rows, starts, axis=1)
    return blocks
