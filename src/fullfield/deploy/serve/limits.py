"""Reading a body within limits that are checked while it comes, so that an endless or slow one is cut."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from starlette.requests import Request

from fullfield.deploy.serve.metrics import Metrics
from fullfield.deploy.serve.refusal import Refusal, busy
from fullfield.deploy.serve.settings import ServeSettings

__all__ = ["Body", "HeldBytes"]


class HeldBytes:
    """Counts the bytes of all bodies in memory.

    Args:
        limit: At most so many together.
        metrics: Its gauge shows the count.
    """

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self.limit, self.count = limit, 0
        metrics.held_bytes.set_function(lambda: self.count)

    def take(self, count: int) -> None:
        """Count some more.

        Raises:
            Refusal: All together would be too many (429).
        """
        if self.count + count > self.limit:
            raise busy("memory", "Too much is being sent at one time; ask again a little later.")
        self.count += count

    def give_back(self, count: int) -> None:
        """Count some less."""
        self.count -= count


class Body:
    """A request's body, to be read once; a context in which its bytes count as held.

    Attributes:
        size: Bytes read until now.
    """

    def __init__(self, request: Request, settings: ServeSettings, held: HeldBytes) -> None:
        self.size = 0
        self._request, self._settings, self._held = request, settings, held

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.give_back(self.size)

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body piece by piece.

        Raises:
            Refusal: It is too large (413), comes too slowly (408), its client left (400), or memory is short (429).
        """
        limit = self._settings.max_bytes
        if _declared(self._request) > limit:
            raise _too_large(limit)
        end = time.monotonic() + self._settings.upload_timeout_s
        more = True
        while more:
            patience = min(self._settings.idle_timeout_s, end - time.monotonic())
            try:
                async with asyncio.timeout(max(patience, 0)):
                    message = await self._request.receive()
            except TimeoutError as error:
                raise Refusal(408, "upload_timeout", "The body came too slowly; send it again.") from error
            if message["type"] != "http.request":
                raise Refusal(400, "disconnected", "The body ended before it was complete.")
            piece = message.get("body", b"")
            if self.size + len(piece) > limit:
                raise _too_large(limit)
            self._held.take(len(piece))
            self.size += len(piece)
            more = message.get("more_body", False)
            if piece:
                yield piece


def _declared(request: Request) -> int:
    try:
        return int(request.headers.get("content-length", "0"))
    except ValueError:
        return 0  # the server refuses it, or the body is counted


def _too_large(limit: int) -> Refusal:
    return Refusal(413, "too_large", f"The body is larger than the limit of {limit:,} bytes; send smaller images.")
