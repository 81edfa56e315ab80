"""Every line is JSON, whoever writes it, and quotes nothing that may have come from a client."""

from __future__ import annotations

import io
import json
import logging
import warnings

import pytest

from fullfield.deploy.serve.logs import LOGGER, event, logging_to

SENT = "what a client sent"


def test_lines_of_other_libraries_and_warnings_tell_their_place_and_no_text() -> None:
    stream = io.StringIO()
    with logging_to(stream):
        event(logging.INFO, "ready", models=["net"])
        logging.getLogger("asyncio").error(f"Task exception: ValueError({SENT!r})")
        logging.getLogger("asyncio").info("below the level")
        logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
        warnings.warn(SENT, stacklevel=1)
        try:
            raise ValueError(SENT)
        except ValueError as error:
            event(logging.ERROR, "failed", error=error)
    text = stream.getvalue()
    assert SENT not in text
    ready, other, server, warned, failed = map(json.loads, text.splitlines())
    assert (ready["event"], ready["models"], ready["level"]) == ("ready", ["net"], "info")
    assert (other["event"], other["logger"], other["level"]) == ("library", "asyncio", "error")
    assert "test_logs.py:" in other["place"]
    assert server["event"] == "Invalid HTTP request received."
    assert warned["logger"] == "py.warnings"
    assert (failed["error"], failed["event"]) == ("ValueError", "failed")
    assert "test_logs.py:" in failed["trace"][-1]


def test_logging_is_afterwards_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    root = logging.getLogger()
    before = (list(root.handlers), root.level, LOGGER.propagate, warnings.showwarning)
    with pytest.raises(RuntimeError, match="stop"), logging_to(io.StringIO()):
        raise RuntimeError("stop")
    assert (list(root.handlers), root.level, LOGGER.propagate, warnings.showwarning) == before
    with caplog.at_level(logging.INFO):
        event(logging.INFO, "seen")
    assert [record.msg for record in caplog.records] == ["seen"]
