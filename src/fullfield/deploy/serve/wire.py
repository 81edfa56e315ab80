"""Messages between the service and a worker: a JSON header and bytes, on a pipe.

    4 bytes, big-endian: length of the header | header, JSON | the blobs whose lengths the header's "blobs" lists

No pickle: a worker has decoded what strangers sent, and what it says is read as plain values.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import IO, Any

__all__ = ["LARGEST_HEADER", "frame", "read_frame", "receive_frame"]

LARGEST_HEADER = 512 * 1024 * 1024
"""Bytes; label maps travel in headers."""

Frame = tuple[dict[str, Any], list[bytes]]


def frame(header: dict[str, Any], blobs: Sequence[bytes] = ()) -> list[bytes]:
    """Return the pieces to write.

    Args:
        header: Plain JSON values.
        blobs: Bytes that follow.

    Raises:
        ValueError: A number of the header is not finite.
    """
    text = json.dumps({**header, "blobs": [len(blob) for blob in blobs]}, allow_nan=False).encode()
    return [len(text).to_bytes(4, "big"), text, *blobs]


def read_frame(stream: IO[bytes]) -> Frame:
    """Read one message from a file.

    Raises:
        EOFError: The other side has closed the pipe.
    """
    header = json.loads(_exactly(stream, int.from_bytes(_exactly(stream, 4), "big")))
    return header, [_exactly(stream, length) for length in header.pop("blobs")]


async def receive_frame(stream: asyncio.StreamReader) -> Frame:
    """Read one message from a pipe of asyncio.

    Raises:
        EOFError: The other side has closed the pipe (asyncio.IncompleteReadError).
        ValueError: It is no message of ours.
    """
    length = int.from_bytes(await stream.readexactly(4), "big")
    if length > LARGEST_HEADER:
        raise ValueError("a worker's message is too long")
    header = json.loads(await stream.readexactly(length))
    return header, [await stream.readexactly(length) for length in header.pop("blobs")]


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data
