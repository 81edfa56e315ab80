"""What happens to every request, mounted pages included: its identifier, its line in the log, and its end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fullfield.deploy.serve.logs import RequestRecord, event
from fullfield.deploy.serve.metrics import Metrics
from fullfield.deploy.serve.refusal import Refusal

__all__ = ["CloseUnread", "RecordRequests"]

LINGER_S = 1.0


class RecordRequests:
    """Give a request its identifier, write its line, count it, and turn an unforeseen error into a plain 500.

    Args:
        app: What answers.
        metrics: Where it is counted.
        stopping: Whether the service is being stopped: then clients are told to open a new connection next time.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, stopping: Callable[[], bool]) -> None:
        self.app, self.metrics, self.stopping = app, metrics, stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and write its line when it has ended."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = RequestRecord()
        scope.setdefault("state", {})["record"] = record
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = record.id
                if self.stopping():
                    headers["Connection"] = "close"
            await send(message)

        self.metrics.in_progress.inc()
        try:
            await self.app(scope, receive, sending)
        except Exception as error:  # no client may bring the service down
            event(logging.ERROR, "failed", error=error, id=record.id)
            if not status:
                refusal = Refusal(500, "failed", "The service failed on this request.")
                await refusal.response(scope)(scope, receive, sending)
        finally:
            self.metrics.in_progress.dec()
            # 0: the client left, or the service was stopped, before there was an answer.
            labels = (_route(scope, record), record.model)
            self.metrics.requests.labels(*labels, str(status)).inc()
            self.metrics.seconds.labels(*labels).observe(time.monotonic() - record.start)
            event(logging.INFO, "request", **record.fields(scope["method"], status))


def _route(scope: Scope, record: RequestRecord) -> str:
    """Return the pattern of the route, or what is mounted: never the path itself, which a client wrote."""
    if record.route == "unmatched":
        pattern = getattr(scope.get("route"), "path", None)
        record.route = pattern if isinstance(pattern, str) else scope.get("root_path") or "unmatched"
    return record.route


class CloseUnread:
    """Close the connection after an answer to a body that was not read to its end.

    Otherwise a client could send for ever what nobody reads. Closing at once would make the client's system throw the
    answer away, so what still comes is read and dropped for `LINGER_S` first.

    Args:
        app: What answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        if "transfer-encoding" not in headers and headers.get("content-length", "0") == "0":
            await self.app(scope, receive, send)
            return
        unread = True
        closing = False

        async def receiving() -> Message:
            nonlocal unread
            message = await receive()
            unread = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def sending(message: Message) -> None:
            nonlocal closing
            if message["type"] == "http.response.start" and unread:
                closing = True
                MutableHeaders(scope=message)["Connection"] = "close"
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if not (last and closing):
                await send(message)
                return
            await send({**message, "more_body": True})
            end = time.monotonic() + LINGER_S
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    # Where a piece is always there, nothing is awaited, and the timeout alone would never come.
                    while unread and time.monotonic() < end:
                        await receiving()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self.app(scope, receiving, sending)
