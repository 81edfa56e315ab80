"""API keys: where they come from, and the check of every request.

A key comes as `Authorization: Bearer KEY`, as `X-API-Key: KEY`, or as the password of `Authorization: Basic`, which is
what a browser asks for when it opens a page of the service.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from fullfield.deploy.serve.refusal import Refusal
from fullfield.errors import ConfigError

__all__ = ["ENVIRONMENT", "OPEN_PATHS", "KeyCheck", "read_keys"]

ENVIRONMENT = "FULLFIELD_API_KEYS"
"""Variable with keys, separated by commas."""
OPEN_PATHS = frozenset({"/health", "/ready", "/openapi.json", "/docs"})
"""Paths that need no key: they tell nothing of images, and probes can't hold a key."""
_SHORTEST = 16


def read_keys(file: str | Path | None = None, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Collect the keys of a file and of the variable `ENVIRONMENT`.

    Args:
        file: One key a line; empty lines and lines that start with # are skipped.
        environment: Variables.

    Raises:
        ConfigError: The file can't be read or holds no key, or a key is too short or not plain ASCII.
    """
    found: list[str] = []
    if file is not None:
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the file of keys {file} can't be read: {error}") from error
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise ConfigError(f"the file of keys {file} holds none; write one a line")
    found += [key.strip() for key in environment.get(ENVIRONMENT, "").split(",") if key.strip()]
    for number, key in enumerate(found, start=1):
        # The key itself is never part of a message.
        if len(key) < _SHORTEST or not (key.isascii() and key.isprintable()) or " " in key:
            raise ConfigError(
                f"key {number} has {len(key)} characters; expected at least {_SHORTEST}, ASCII without spaces, such as"
                " `openssl rand -hex 24` gives"
            )
    return tuple(dict.fromkeys(found))


class KeyCheck:
    """Middleware that lets nothing pass without a key but `OPEN_PATHS`.

    It guards whatever is mounted in the application, too.

    Args:
        app: What it guards.
        keys: At least one.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app = app
        # Digests have one length, so that comparing them takes one time whatever was sent.
        self._digests = tuple(_digest(key) for key in keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401."""
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS or self._known(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # a WebSocket
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = Refusal(
            401,
            "key",
            "A valid API key is needed: send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`.",
            headers={"WWW-Authenticate": 'Bearer realm="fullfield", Basic realm="fullfield"'},
        )
        await refusal.response(scope)(scope, receive, send)

    def _known(self, headers: Headers) -> bool:
        digest = _digest(_sent_key(headers))
        # Every key is compared, so that the time does not tell which one it was.
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


def _sent_key(headers: Headers) -> str:
    authorization = headers.get("authorization")
    if authorization is None:
        return headers.get("x-api-key", "")
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode("latin-1").partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return ""  # of no other scheme, and not from X-API-Key either: one request tells one key


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
