"""uvicorn's protocol with two limits that it lacks: open connections, and the time for a request's head."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from fullfield.deploy.serve.settings import ServeSettings

__all__ = ["limited_protocol"]

_BODY = (
    b'{"error":{"code":"connections","message":"Too many connections are open; ask again a little later.",'
    b'"image":null,"request_id":""}}'
)
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)
_LINGER_S = 1.0


def limited_protocol(settings: ServeSettings, refused: Callable[[str], None]) -> type[H11Protocol]:
    """Return a protocol class with the limits of the settings.

    Args:
        settings: Its `max_connections` and `header_timeout_s`.
        refused: Called with "limit" or "header" for each connection that is closed.
    """

    class LimitedProtocol(H11Protocol):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._head_timer: asyncio.TimerHandle | None = None
            self._beyond = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._beyond = len(self.connections) > settings.max_connections
            self._watch_head()

        def data_received(self, data: bytes) -> None:
            if not self._beyond:
                super().data_received(data)
                self._watch_head()
            elif not self.transport.is_closing() and self._head_timer is not None:
                # Answered when the request comes, and closed a little later: see `middleware.CloseUnread`.
                self._stop_timer()
                refused("limit")
                self.transport.write(_FULL)
                self.loop.call_later(_LINGER_S, self.transport.close)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def _watch_head(self) -> None:
            """Run a timer while the head of a request is awaited; uvicorn's own ends with its first byte."""
            awaited = self.conn.their_state is h11.IDLE and (self.cycle is None or self.cycle.response_complete)
            if not awaited:
                self._stop_timer()
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(settings.header_timeout_s, self._too_slow)

        def _too_slow(self) -> None:
            self._head_timer = None
            if not self.transport.is_closing():
                refused("header")
                self.transport.close()

        def _stop_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

    return LimitedProtocol
