"""The tab "Report": the page that training wrote, in a frame that can run nothing and fetch nothing."""

from __future__ import annotations

import re
from typing import Any

import gradio as gr

from fullfield.app.inputs import Inputs
from fullfield.app.pieces import render
from fullfield.app.sentence import problem_box, with_sentence
from fullfield.app.shelf import Shelf
from fullfield.errors import RunError

__all__ = ["add_report_tab", "report_frame"]

BEGINNING = (
    '<meta http-equiv="Content-Security-Policy"'
    " content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
    '<base href="about:srcdoc">'
)
"""Our reports carry the policy themselves; the run folder may be a stranger's. Without the base a link to a part of the
report would lead the frame to the page around it."""
LARGEST = 32_000_000  # bytes


def add_report_tab(shelf: Shelf, inputs: Inputs) -> None:
    """Add the tab to the page being built; the report is read when the tab is opened.

    Args:
        shelf: The models.
        inputs: What is read.
    """
    with gr.Tab("Report", id="report") as tab:
        problem = problem_box()
        frame = gr.HTML(elem_id="report-frame")

    @with_sentence("")
    def read(label: str) -> tuple[Any, ...]:
        return (report_frame(shelf, label),)

    for event in (tab.select, inputs.model.change):
        event(
            read,
            inputs.model,
            [problem, frame],
            show_progress="hidden",
            concurrency_id="answer",
            api_visibility="private",
        )


def report_frame(shelf: Shelf, label: str) -> str:
    """Return a frame with the report of a model's run.

    Args:
        shelf: The models.
        label: Of one of them.

    Raises:
        RunError: There is none, or it can't be read.
    """
    path = shelf[label].report
    if path is None:
        raise RunError(f"{label} has no report: `fullfield train` writes one into its run folder")
    try:
        size = path.stat().st_size
        text = path.read_text(encoding="utf-8", errors="replace") if size <= LARGEST else ""
    except OSError as error:
        raise RunError(f"the report of {label} can't be read ({error.strerror}); restore it, or train again") from error
    if size > LARGEST:
        raise RunError(f"the report of {label} has more than {LARGEST:,} bytes; open {path.name} in its run folder")
    document = re.sub(r"(?i)(<!doctype[^>]*>)?", lambda found: found[0] + BEGINNING, text.lstrip("\ufeff \n"), count=1)
    return render("report", name=label, document=document)
