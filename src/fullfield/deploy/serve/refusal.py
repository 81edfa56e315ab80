"""What a client is told when it gets no answer: one form for every status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Scope

__all__ = ["Refusal", "busy"]


class Refusal(Exception):  # noqa: N818 - it is an answer to a client, not a fault
    """A request that is not answered, and why.

    Args:
        status: Of HTTP.
        code: One word for programs.
        message: A sentence for people. It goes to the client alone and is never logged.
        image: The number of the image in the request, from 1.
        headers: More headers of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        image: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(code)
        self.status, self.code, self.message, self.image = status, code, message, image
        self.headers = dict(headers or {})

    def response(self, scope: Scope) -> JSONResponse:
        """Return the answer as `{"error": {"code", "message", "image", "request_id"}}`."""
        state = scope.get("state", {})
        record = state.get("record")
        if record is not None:
            record.code = self.code
        body: dict[str, Any] = {"code": self.code, "message": self.message, "image": self.image}
        body["request_id"] = record.id if record is not None else ""
        return JSONResponse({"error": body}, self.status, self.headers)


def busy(code: str, message: str, *, status: int = 429, seconds: int = 1) -> Refusal:
    """Return a refusal that says when to ask again, by `Retry-After`."""
    return Refusal(status, code, message, headers={"Retry-After": str(seconds)})
