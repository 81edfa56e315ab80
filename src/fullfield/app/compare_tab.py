"""The tab "Compare": two models' answers about one picture, side by side."""

from __future__ import annotations

from typing import Any

import gradio as gr

from fullfield.app.inputs import Inputs
from fullfield.app.pieces import render
from fullfield.app.predict_tab import THRESHOLD, drawn_picture, show_answer
from fullfield.app.sentence import problem_box, with_sentence
from fullfield.app.shelf import Shelf
from fullfield.app.upload import Upload
from fullfield.errors import ConfigError

__all__ = ["add_compare_tab"]


def add_compare_tab(shelf: Shelf, inputs: Inputs) -> None:
    """Add the tab to the page being built; with one model it says what is missing.

    Args:
        shelf: The models.
        inputs: What is read.
    """
    with gr.Tab("Compare", id="compare"):
        if len(shelf.labels) < 2:
            gr.HTML(render("note", text="Start the page with two models or more to compare their answers."))
            return
        other = gr.Dropdown(
            shelf.labels, value=shelf.labels[1], label="Compare with", filterable=False, elem_id="other-model"
        )
        start = gr.Button("Compare", variant="primary", elem_id="compare-start")
        problem = problem_box()
        with gr.Row():
            outputs: list[Any] = [problem]
            for side in ("first", "second"):
                with gr.Column(min_width=260):
                    outputs.append(drawn_picture(f"Answer of the {side} model", f"compare-{side}-picture"))
                    outputs.append(gr.HTML(elem_id=f"compare-{side}"))

    @with_sentence(*(gr.update(value=None, visible=False), "") * 2)
    def compare(label: str, other_label: str, upload: Upload | None) -> tuple[Any, ...]:
        if upload is None:
            raise ConfigError("there is no picture yet; give one, then compare")
        if label == other_label:
            raise ConfigError(f"both are {label}; choose another model to compare with")
        sides = (show_answer(shelf, each, upload, THRESHOLD, "") for each in (label, other_label))
        return tuple(value for side in sides for value in side)

    inputs.model.change(
        lambda label, now: next(each for each in (now, *shelf.labels) if each != label),
        [inputs.model, other],
        other,
        show_progress="hidden",
        api_visibility="private",
    )
    start.click(
        compare,
        [inputs.model, other, inputs.picture],
        outputs,
        concurrency_id="answer",
        api_visibility="private",
    )
    gr.on(
        [inputs.picture.change, inputs.model.change, other.change],
        lambda: (gr.update(visible=False), *(gr.update(value=None, visible=False), "") * 2),
        None,
        outputs,
        show_progress="hidden",
        api_visibility="private",
    )
