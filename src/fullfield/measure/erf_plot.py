"""Pictures of effective receptive fields: one map a result, side by side, and their radial profiles below.

Matplotlib comes with the extra `look`, is imported on first use and is used without pyplot, so no display, backend or
global figure is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fullfield.errors import ConfigError, MissingExtraError
from fullfield.files import atomic_write
from fullfield.measure.erf_result import Erf

__all__ = ["plot_erfs"]

DECADES = 4  # the colour scale ends at 1e-4 of the peak
OUTLINED = 0.5  # the share of the mass whose square is drawn
COLUMNS = 4
MUTED = "#666666"


def plot_erfs(results: Sequence[Erf], path: str | Path) -> Path:
    """Draw results side by side to a .png, .svg or .pdf file.

    Colours are logarithmic and each map has its own peak. The solid square holds half of the mass; the dashed one is
    the theoretical field where it ends inside the image. Every panel says whether the weights are trained.

    Args:
        results: Of any layers and models, at most four in a row.
        path: The file; its folder must exist.

    Raises:
        ConfigError: There is no result, or the file's format is unknown.
        MissingExtraError: matplotlib is not installed.
        RunError: The file can't be written.
    """
    path = Path(path)
    if not results:
        raise ConfigError(f"there is no field to draw, so {path} would be empty")
    kind = path.suffix.lstrip(".")
    if kind not in ("png", "svg", "pdf"):
        raise ConfigError(f"{path} must end in .png, .svg or .pdf")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("drawing needs matplotlib: pip install 'fullfield[look]'") from error
    columns = min(COLUMNS, len(results))
    rows = -(-len(results) // columns)
    legend = 0.2 * -(-len(results) // 2)
    figure = Figure(figsize=(max(6.8, 3.0 * columns + 0.8), 3.7 * rows + 2.4 + legend), layout="constrained")
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[3.7] * rows + [2.0])
    panels = [figure.add_subplot(grid[divmod(index, columns)]) for index in range(len(results))]
    drawn = [_draw_map(panel, result) for panel, result in zip(panels, results, strict=True)]
    figure.colorbar(drawn[0], ax=panels, shrink=0.8, aspect=30, pad=0.01, label="contribution / peak, powers of ten")
    _draw_profiles(figure.add_subplot(grid[rows, :]), results)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.suptitle(_caption(results), fontsize=8, color=MUTED)
    with atomic_write(path) as partial:
        figure.savefig(partial, format=kind, dpi=130)
    return path


def _draw_map(panel: Any, result: Erf) -> Any:
    from matplotlib.patches import Rectangle

    magnitude = np.abs(result.map)
    level = np.log10(np.maximum(magnitude / magnitude.max(), 10.0**-DECADES))
    image = panel.imshow(level, cmap="magma", vmin=-DECADES, vmax=0, interpolation="nearest")
    square = result.squares[OUTLINED]
    y, x = result.centre if result.preset != "replknet" else tuple(side // 2 for side in result.image_size)
    corner = (x - square.width / 2, y - square.height / 2)
    panel.add_patch(Rectangle(corner, square.width, square.height, fill=False, color="#35c6f4", linewidth=1.4))
    window = result.theory.window(result.position, result.image_size) or result.probed
    if window is not None:
        top, left, bottom, right = window
        box = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, color="white", linestyle="--")
        panel.add_patch(box)
    H, W = result.image_size
    panel.set(xlim=(-0.5, W - 0.5), ylim=(H - 0.5, -0.5), xticks=[], yticks=[])
    weights = {"trained": "trained weights", "random": "RANDOM weights"}.get(result.weights, "weights unknown")
    panel.set_title(f"{result.model}\n{result.layer}, {weights}", fontsize=9)
    areas = ", ".join(f"r({t:.0%}) {ratio:.1%}" for t, ratio in result.area_ratio.items() if t >= OUTLINED)
    theory = "global" if result.theory.followed and result.theory.size is None else _shortened(result.bound)
    panel.set_xlabel(f"{areas}\ntheory: {theory}", fontsize=8, color=MUTED)
    panel.spines[:].set_visible(False)
    return image


def _draw_profiles(panel: Any, results: Sequence[Erf]) -> None:
    for result in results:
        profile = result.profile / result.profile.max()
        panel.plot(
            np.where(profile > 0, profile, np.nan),
            linewidth=1.4,
            label=f"{result.model} {result.layer}, {result.weights}",
        )
    panel.set_yscale("log")
    panel.set(xlabel="distance from the centre, pixels", ylabel="mean / peak", xlim=(0, None))
    panel.set_ylim(bottom=max(panel.get_ylim()[0], 10.0 ** -(DECADES + 2)))
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


def _caption(results: Sequence[Erf]) -> str:
    def told(values: list[str]) -> str:
        return "; ".join(dict.fromkeys(values))

    procedure = told([f"preset {r.preset} ({r.channels}, {r.gradient})" for r in results])
    sizes = told(["×".join(map(str, r.image_size)) + " px" for r in results])
    caption = f"effective receptive field over {told([r.images for r in results])}, {sizes}, {procedure}"
    if any(r.weights == "random" for r in results):
        caption += "\nrandom weights: what is seen is the initialisation"
    return caption


def _shortened(text: str, most: int = 36) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
