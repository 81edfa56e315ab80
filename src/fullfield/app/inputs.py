"""What all tabs share: the model, the picture, and the pictures that come with the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from fullfield.app.shelf import Shelf
from fullfield.app.upload import picture_input
from fullfield.data.sample import sample_path

__all__ = ["Inputs", "add_inputs", "sample_pictures"]


@dataclass(frozen=True)
class Inputs:
    """The components that handlers of every tab read."""

    model: gr.Dropdown
    """Its value is a label of the shelf."""
    picture: gr.Image
    """See `picture_input`."""


def add_inputs(shelf: Shelf) -> Inputs:
    """Add the choice of the model and of the picture to the page being built.

    Args:
        shelf: The models.
    """
    model = gr.Dropdown(shelf.labels, value=shelf.labels[0], label="Model", filterable=False, elem_id="model")
    picture = picture_input("Picture")
    samples = sample_pictures()
    shown = gr.Dataset(
        label="Or one that comes with Fullfield",
        components=[gr.Image(type="filepath", render=False)],
        samples=[[str(path)] for path in samples],
        type="index",
        elem_id="samples",
    )
    shown.click(lambda index: str(samples[index]), shown, picture, show_progress="hidden", api_visibility="private")
    return Inputs(model, picture)


def sample_pictures() -> list[Path]:
    """Return four pictures of the package's samples: single cells, many cells, nuclei."""
    cells = sample_path("blood_cells") / "test"
    many = sorted((sample_path("blood_cells_boxes") / "images").glob("*.jpg"))
    nuclei = sorted((sample_path("nuclei") / "test" / "images").glob("*.jpg"))
    return [*(sorted((cells / name).glob("*.jpg"))[0] for name in ("RBC", "WBC")), many[0], nuclei[0]]
