"""A handler that fails gives a sentence, and never a traceback."""

from __future__ import annotations

import logging
from html import unescape
from typing import Any

import pytest

from fullfield.app.sentence import UNEXPECTED, with_sentence
from fullfield.errors import FullfieldError, ImageError


def handler(error: Exception | None) -> Any:
    @with_sentence("cleared", None)
    def handle(value: str) -> tuple[Any, ...]:
        if error is not None:
            raise error
        return value, 1

    return handle


def test_values_of_a_handler_follow_a_hidden_box() -> None:
    problem, *values = handler(None)("a")
    assert (problem["visible"], problem["value"], values) == (False, "", ["a", 1])


@pytest.mark.parametrize("error", [FullfieldError("mend <this>"), ImageError("mend <this>")])
def test_our_errors_are_told_and_the_outputs_cleared(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    problem, *values = handler(error)("a")
    assert problem["visible"] is True
    assert 'role="alert">mend &lt;this&gt;</p>' in problem["value"]
    assert values == ["cleared", None]
    assert not caplog.records


@pytest.mark.parametrize("error", [RuntimeError("secret/path"), KeyError("secret/path"), MemoryError()])
def test_other_errors_go_to_the_log_and_the_visitor_sees_no_detail(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        problem, *values = handler(error)("a")
    assert UNEXPECTED in unescape(problem["value"])
    assert "secret" not in problem["value"]
    assert values == ["cleared", None]
    assert caplog.records[0].exc_info is not None
