"""The tab "Cost": parameters, MACs and FLOPs of every model by count (see `measure.cost`), each in its own column."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from fullfield.app.pieces import render
from fullfield.app.sentence import problem_box, with_sentence
from fullfield.app.shelf import Shelf

if TYPE_CHECKING:
    from fullfield.measure.cost import Cost
    from fullfield.tasks.open import OpenedDense
    from fullfield.tasks.source import OpenedModel

__all__ = ["add_cost_tab", "cost_rows"]

COARSEST = 32  # dense models take sides that are multiples of it, pixels


def add_cost_tab(shelf: Shelf) -> None:
    """Add the tab to the page being built; models are counted when it is opened.

    Args:
        shelf: The models.
    """
    with gr.Tab("Cost", id="cost") as tab:
        problem = problem_box()
        text = gr.HTML("<p class='ff-muted'>Counting …</p>", elem_id="cost-text")

    @with_sentence("")
    def count() -> tuple[Any, ...]:
        return (render("costs", rows=cost_rows(shelf)),)

    tab.select(count, None, [problem, text], show_progress_on=text, concurrency_id="look", api_visibility="private")


def cost_rows(shelf: Shelf) -> list[dict[str, Any]]:
    """Return the rows of the table: one a model, of a detector one of its backbone.

    Args:
        shelf: The models.
    """
    rows: list[dict[str, Any]] = []
    for label in shelf.labels:
        model = shelf[label]
        row: dict[str, Any] = {"name": label, "part": "", "why": ""}
        if model.is_exported:
            rows.append(row | {"why": "an exported file does not tell; name the run that it came from"})
            continue
        part, cost = _count(shelf.net(label, "costs"))
        size = "×".join(map(str, cost.input_size[1:]))
        rows.append(row | {"part": part, "size": size, "params": cost.params, "macs": cost.macs, "flops": cost.flops})
    return rows


def _count(opened: OpenedModel | OpenedDense) -> tuple[str, Cost]:
    """Return what is counted, "" for the whole model, and its counts."""
    from fullfield.measure.cost import cost  # a page of exported files does without PyTorch
    from fullfield.tasks.open import OpenedDense, backbone_of

    if not isinstance(opened, OpenedDense):
        return "", cost(opened.model, image_size=opened.preprocess.image_size)
    side = backbone_of(opened).preprocess.image_size
    side = -(-side // COARSEST) * COARSEST
    if opened.task == "segment":
        return "", cost(opened.model, image_size=side)
    # what a detector's head computes depends on what it finds in the image
    return "backbone", cost(opened.model.backbone, image_size=side)
