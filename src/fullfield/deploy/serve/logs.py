"""Structured logs: one JSON object a line.

Nothing that a client sent is written: no file name, no header, no path but the pattern of the route, no message of a
decoder. An error is told by its kind and by where it was raised. What another library logs may quote what it was given,
so only the place of its call is written.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
import time
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

__all__ = ["LOGGER", "JsonFormatter", "RequestRecord", "event", "logging_to"]

LOGGER = logging.getLogger("fullfield.serve")
_SERVER = logging.getLogger("uvicorn.error")


class JsonFormatter(logging.Formatter):
    """Write a record as `{"time", "level", "event", ...}`.

    Of the server's records the text before formatting is the event; another library's have the event "library", with
    the logger and the place of the call.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": when, "level": record.levelname.lower()}
        if record.name in (LOGGER.name, _SERVER.name):
            line |= {"event": str(record.msg).strip(), **getattr(record, "fields", {})}
        else:
            place = f"{record.pathname}:{record.lineno} {record.funcName}"
            line |= {"event": "library", "logger": record.name, "place": place}
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            line["trace"] = [f"{p.filename}:{p.lineno} {p.name}" for p in traceback.extract_tb(record.exc_info[2])[-8:]]
        return json.dumps(line)


@dataclass
class RequestRecord:
    """What one request's line will say; the endpoints fill it in."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    start: float = field(default_factory=time.monotonic)
    route: str = "unmatched"
    model: str = ""
    images: int = 0
    bytes: int = 0
    batch: int | None = None
    queue_ms: float | None = None
    code: str | None = None

    def fields(self, method: str, status: int) -> dict[str, Any]:
        """Return the line's values; `method` only if it is one of HTTP's, as a client may send any word."""
        return {
            "id": self.id,
            "method": method if method in _METHODS else "other",
            "route": self.route,
            "model": self.model or None,
            "status": status,
            "code": self.code,
            "ms": round(1000 * (time.monotonic() - self.start), 1),
            "queue_ms": None if self.queue_ms is None else round(self.queue_ms, 1),
            "batch": self.batch,
            "images": self.images,
            "bytes": self.bytes,
        }


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def event(level: int, name: str, *, error: BaseException | None = None, **fields: Any) -> None:
    """Write a line.

    Args:
        level: Of `logging`.
        name: What happened, in one word.
        error: Its kind and place are written, never its message.
        fields: Plain values.
    """
    LOGGER.log(level, name, extra={"fields": fields}, exc_info=error)


@contextmanager
def logging_to(stream: IO[str] | None = None) -> Iterator[None]:
    """Send all lines, and the warnings of libraries, to a stream and nowhere else as long as the context is open.

    Args:
        stream: Standard error by default.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    levels = {LOGGER: logging.INFO, _SERVER: logging.WARNING, logging.getLogger(): logging.WARNING}
    before = [(logger, logger.handlers, logger.propagate, logger.level) for logger in levels]
    for logger, level in levels.items():
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, handlers, propagate, level in before:
            logger.handlers = handlers
            logger.propagate = propagate
            logger.setLevel(level)
