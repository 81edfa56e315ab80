"""The tab "Answer": what the model says of the picture, as soon as there is one."""

from __future__ import annotations

from typing import Any

import gradio as gr

from fullfield.app.answer import answer
from fullfield.app.inputs import Inputs
from fullfield.app.sentence import problem_box, with_sentence
from fullfield.app.shelf import Shelf
from fullfield.app.upload import Upload, read_upload

__all__ = ["EMPTY", "add_predict_tab", "drawn_picture", "show_answer"]

EMPTY = "<p class='ff-muted'>Give a picture, and the model's answer appears here.</p>"
THRESHOLD = 0.3


def add_predict_tab(shelf: Shelf, inputs: Inputs) -> None:
    """Add the tab to the page being built.

    Args:
        shelf: The models.
        inputs: What is read.
    """
    with gr.Tab("Answer", id="answer"):
        problem = problem_box()
        drawn = drawn_picture("Answer drawn over the picture", "answer-picture")
        text = gr.HTML(EMPTY, elem_id="answer-text")
        threshold = gr.Slider(
            0,
            1,
            THRESHOLD,
            step=0.05,
            label="Least score of an object",
            visible=_is_detector(shelf, shelf.labels[0]),
            elem_id="threshold",
        )

    @with_sentence(gr.update(value=None, visible=False), "")
    def predict(label: str, upload: Upload | None, least: float) -> tuple[Any, ...]:
        return show_answer(shelf, label, upload, least, EMPTY)

    inputs.model.change(
        lambda label: gr.update(visible=_is_detector(shelf, label)),
        inputs.model,
        threshold,
        show_progress="hidden",
        api_visibility="private",
    )
    gr.on(
        [inputs.picture.change, inputs.model.change, threshold.release],
        predict,
        [inputs.model, inputs.picture, threshold],
        [problem, drawn, text],
        show_progress_on=text,
        trigger_mode="always_last",
        concurrency_id="answer",
        api_visibility="private",
    )


def drawn_picture(label: str, name: str) -> gr.Image:
    """Return a place for a picture that the page makes; it is not there until there is one.

    Args:
        label: Its name for visitors.
        name: Its id in the page.
    """
    return gr.Image(
        label=label,
        show_label=False,
        interactive=False,
        visible=False,
        format="png",
        elem_id=name,
        elem_classes="ff-drawn",
        buttons=["download", "fullscreen"],
        alt_text=label,
    )


def show_answer(shelf: Shelf, label: str, upload: Upload | None, threshold: float, empty: str) -> tuple[Any, ...]:
    """Return the values of a drawn picture and of the text below it.

    Args:
        shelf: The models.
        label: Of one of them.
        upload: The picture; None if there is none.
        threshold: As of `answer`.
        empty: The text where there is no picture.

    Raises:
        ImageError: The picture can't be read.
    """
    if upload is None:
        return gr.update(value=None, visible=False), empty
    found = answer(shelf[label], read_upload(upload), upload.name, threshold=threshold)
    return gr.update(value=found.picture, visible=found.picture is not None), found.html


def _is_detector(shelf: Shelf, label: str) -> bool:
    return label in shelf.labels and shelf[label].predictor.task == "detect"
