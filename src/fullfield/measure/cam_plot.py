"""Pictures of class-activation maps: a row an image, the map of every method over it, and the curves of their scores.

Matplotlib comes with the extra `look`, is imported on first use and is used without pyplot, so no display, backend or
global figure is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fullfield.errors import ConfigError, MissingExtraError
from fullfield.files import atomic_write
from fullfield.measure.cam_result import Cam

__all__ = ["overlay", "plot_cams"]

STRONGEST = 0.62  # how much of the picture the colour may cover
PANEL = 2.9  # inches
MUTED = "#666666"
DELETION, INSERTION = "#c2410c", "#1d4ed8"


def overlay(result: Cam, *, strongest: float = STRONGEST) -> npt.NDArray[np.uint8]:
    """Return the map in colour over the image.

    Cold places keep a paler image; the warmer a place, the more the colour covers it. Both the order of the colours
    and their lightness rise evenly (inferno), so that no edge is seen where the map has none.

    Args:
        result: The map and its image.
        strongest: Opacity of the colour at the peak, 0 to 1.

    Returns:
        (H, W, 3).

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps
    except ModuleNotFoundError as error:
        raise MissingExtraError("drawing needs matplotlib: pip install 'fullfield[look]'") from error
    heat = result.map[:, :, None]
    colour = colormaps["inferno"](0.25 + 0.7 * result.map)[:, :, :3]
    image = result.image / 255.0
    grey = image.mean(axis=2, keepdims=True)
    cool = 0.55 * (0.5 * image + 0.5 * grey)
    base = cool + (image - cool) * np.minimum(1.0, 0.35 + heat)
    opacity = strongest * heat**1.2
    blend: npt.NDArray[np.float64] = base * (1 - opacity) + colour * opacity
    return np.clip(np.round(255 * blend), 0, 255).astype(np.uint8)


def plot_cams(results: Sequence[Cam], path: str | Path) -> Path:
    """Draw results to a .png, .svg or .pdf file: a row an image and model, a column a method.

    Args:
        results: Of any images, models and methods.
        path: The file; its folder must exist.

    Raises:
        ConfigError: There is no result, or the file's format is unknown.
        MissingExtraError: matplotlib is not installed.
        RunError: The file can't be written.
    """
    path = Path(path)
    if not results:
        raise ConfigError(f"there is no map to draw, so {path} would be empty")
    kind = path.suffix.lstrip(".")
    if kind not in ("png", "svg", "pdf"):
        raise ConfigError(f"{path} must end in .png, .svg or .pdf")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("drawing needs matplotlib: pip install 'fullfield[look]'") from error
    rows: dict[tuple[str, str, int], list[Cam]] = {}
    for result in results:
        rows.setdefault((result.model, result.source, result.class_index), []).append(result)
    most = max(len(row) for row in rows.values())
    curves = most == 1 and all(result.scores for result in results)
    columns = 1 + most + curves
    figure = Figure(figsize=(PANEL * columns + 0.6 * curves, (PANEL + 0.75) * len(rows) + 0.35), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for panels, row in zip(grid, rows.values(), strict=True):
        _draw_image(panels[0], row[0])
        for panel, result in zip(panels[1:], row, strict=False):
            _draw_overlay(panel, result)
        for panel in panels[1 + len(row) :]:
            panel.set_axis_off()
        if curves:
            panels[-1].set_axis_on()
            _draw_curves(panels[-1], row[0])
    figure.suptitle(_caption(results), fontsize=8, color="#b91c1c" if _untrained(results) else MUTED)
    with atomic_write(path) as partial:
        figure.savefig(partial, format=kind, dpi=130)
    return path


def _draw_image(panel: Any, result: Cam) -> None:
    panel.imshow(result.image)
    _without_frame(panel)
    _draw_box(panel, result)
    panel.set_title(f"{_shortened(result.class_name)}\n{_told(result)}", fontsize=9)
    panel.set_xlabel(_shortened(Path(result.source).name), fontsize=7, color=MUTED)


def _draw_overlay(panel: Any, result: Cam) -> None:
    panel.imshow(overlay(result))
    _without_frame(panel)
    _draw_box(panel, result)
    size = "×".join(map(str, result.map_size))
    panel.set_title(f"{result.method}\n{_shortened(f'{result.model}, {result.layer}', 40)} {size}", fontsize=9)
    label = "nothing speaks for the class" if result.empty else ""
    if result.scores is not None:
        told = (
            f"deletion {result.scores.deletion.auc:.2f} (random {result.scores.random_deletion.auc:.2f}),"
            f" insertion {result.scores.insertion.auc:.2f} (random {result.scores.random_insertion.auc:.2f})"
        )
        label = f"{label}\n{told}".strip()
    panel.set_xlabel(label, fontsize=6.5, color=MUTED)


def _draw_box(panel: Any, result: Cam) -> None:
    if result.box is not None:
        from matplotlib.patches import Rectangle

        left, top, right, bottom = result.box
        panel.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, color="#35c6f4", linewidth=1.6))


def _draw_curves(panel: Any, result: Cam) -> None:
    assert result.scores is not None  # noqa: S101 - for the type checker
    scores = result.scores
    for name, colour, curve, random in (
        ("deletion", DELETION, scores.deletion, scores.random_deletion),
        ("insertion", INSERTION, scores.insertion, scores.random_insertion),
    ):
        panel.plot(curve.share, curve.confidence, color=colour, linewidth=1.6, label=f"{name} {curve.auc:.2f}")
        label = f"of random maps {random.auc:.2f}"
        panel.plot(random.share, random.confidence, color=colour, linewidth=1, linestyle=":", label=label)
    panel.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="share of the pixels, highest of the map first", box_aspect=0.8)
    panel.set_ylabel("confidence", fontsize=8)
    panel.tick_params(labelsize=7)
    panel.xaxis.label.set_size(8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.2)
    panel.legend(frameon=False, fontsize=6.5, loc="upper left", bbox_to_anchor=(0, 1.3), ncols=2)


def _without_frame(panel: Any) -> None:
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set_visible(False)


def _told(result: Cam) -> str:
    kinds = {"classify": "probability", "segment": "mean probability of its pixels", "detect": "score of the box"}
    return f"{kinds[result.task]} {result.confidence:.1%}"


def _untrained(results: Sequence[Cam]) -> bool:
    return any(result.weights != "trained" for result in results)


def _caption(results: Sequence[Cam]) -> str:
    names = {result.model: result.weights for result in results}
    said = {"trained": "trained weights", "random": "RANDOM weights", "unknown": "weights unknown"}
    caption = "class-activation maps of " + "; ".join(f"{name} ({said[weights]})" for name, weights in names.items())
    if any(result.weights == "random" for result in results):
        caption += "\nrandom weights: the class and the map mean nothing"
    return caption


def _shortened(text: str, most: int = 34) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
