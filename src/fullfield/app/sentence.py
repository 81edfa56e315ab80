"""What a visitor sees when something does not work: the sentence of our errors in the page, never a traceback."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, ParamSpec

import gradio as gr

from fullfield.app.pieces import render
from fullfield.errors import FullfieldError

__all__ = ["UNEXPECTED", "problem_box", "with_sentence"]

UNEXPECTED = (
    "This did not work, for a reason that is not in the picture or the settings. The log of the page's server has it."
)

P = ParamSpec("P")
_log = logging.getLogger(__name__)


def problem_box() -> gr.HTML:
    """Return the place of the sentence; it is not there until there is one."""
    return gr.HTML(visible=False, elem_classes="ff-message")


def with_sentence(*cleared: Any) -> Callable[[Callable[P, tuple[Any, ...]]], Callable[P, tuple[Any, ...]]]:
    """Return a decorator for a handler: it puts the problem box's value before the handler's own values.

    Args:
        cleared: What the other outputs become when the handler fails, one each.
    """

    def decorate(handler: Callable[P, tuple[Any, ...]]) -> Callable[P, tuple[Any, ...]]:
        @functools.wraps(handler)
        def told(*args: P.args, **kwargs: P.kwargs) -> tuple[Any, ...]:
            try:
                return gr.update(value="", visible=False), *handler(*args, **kwargs)
            except FullfieldError as error:
                sentence = str(error)
            except Exception:  # whatever it is, the visitor is told, and the log has the traceback
                _log.exception("the page could not answer")
                sentence = UNEXPECTED
            return gr.update(value=render("problem", sentence=sentence), visible=True), *cleared

        return told

    return decorate
