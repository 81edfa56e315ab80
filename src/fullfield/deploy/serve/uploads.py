"""The images of a request: the body itself, or the files of a multipart form; kept in memory, never on the disk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from fullfield.deploy.serve.refusal import Refusal

__all__ = ["FIELD", "IMAGE_TYPES", "MULTIPART", "body_kind", "read_form", "read_image_body"]

FIELD = "files"
"""The form's field; it may come several times."""
MULTIPART = "multipart/form-data"
IMAGE_TYPES = (
    "image/jpeg",
    "image/png",
    "image/webp",
    "image/gif",
    "image/bmp",
    "image/tiff",
    "image/x-portable-pixmap",
    "image/x-portable-graymap",
)
"""Content types of a body that is an image. What it really is, the decoder finds out."""
_LONGEST_HEADER = 8192


def body_kind(content_type: str, content_encoding: str) -> str:
    """Return the content type without its parameters.

    Raises:
        Refusal: The service takes no such body (415).
    """
    kind = content_type.partition(";")[0].strip().lower()
    if content_encoding.strip().lower() not in ("", "identity"):
        raise Refusal(415, "content_encoding", "A compressed body is not taken; images are compressed already.")
    if kind != MULTIPART and kind not in IMAGE_TYPES:
        raise Refusal(
            415,
            "content_type",
            f"The content type must be {MULTIPART} with the field `{FIELD}`, or one of {', '.join(IMAGE_TYPES)}.",
        )
    return kind


async def read_image_body(pieces: AsyncIterator[bytes]) -> list[bytes]:
    """Return the one image that the body is.

    Raises:
        Refusal: As `Body.pieces`.
    """
    whole = bytearray()
    async for piece in pieces:
        whole += piece
    return [bytes(whole)]


async def read_form(pieces: AsyncIterator[bytes], content_type: str, *, max_images: int) -> list[bytes]:
    """Return the files of a form, in order.

    Args:
        pieces: The body.
        content_type: With the boundary.
        max_images: At most so many files.

    Raises:
        Refusal: It is no form (400), has no file or too many (422), or something else than images (422, 415).
    """
    boundary = parse_options_header(content_type.encode("latin-1", "replace"))[1].get(b"boundary")
    if not boundary:
        raise Refusal(400, "form", "The content type of the form names no boundary.")
    form = _Form(max_images)
    try:
        parser = MultipartParser(boundary, form.callbacks())
        async for piece in pieces:
            parser.write(piece)
        parser.finalize()
    except FormParserError as error:
        raise Refusal(400, "form", "The form can't be read; it is damaged or cut off.") from error
    if not form.complete:
        raise Refusal(400, "form", "The form is cut off.")
    if not form.files:
        raise Refusal(422, "form", f"The form has no file; send images in the field `{FIELD}`.")
    return [bytes(file) for file in form.files]


class _Form:
    """Gathers the files while a form is parsed."""

    def __init__(self, max_images: int) -> None:
        self.max_images = max_images
        self.files: list[bytearray] = []
        self.complete = False
        self._name, self._value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._headers.clear,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._begin_file,
            "on_part_data": self._data,
            "on_end": self._end,
        }

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]
        self._check_header()

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._check_header()

    def _check_header(self) -> None:
        if len(self._name) + len(self._value) > _LONGEST_HEADER or len(self._headers) > 16:
            raise Refusal(400, "form", "A part of the form has headers that are too long.")

    def _header_end(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _begin_file(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        kind = self._headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        # A file need not have a name (RFC 7578, 4.2); a part with neither name nor type is text (4.4).
        if options.get(b"name") != FIELD.encode() or not (b"filename" in options or kind):
            raise Refusal(422, "form", f"The form has something else than files in the field `{FIELD}`.")
        if kind and kind != b"application/octet-stream" and not kind.startswith(b"image/"):
            raise Refusal(415, "content_type", "A file of the form is declared as something else than an image.")
        if len(self.files) == self.max_images:
            raise Refusal(422, "too_many", f"The form has more than {self.max_images} files; send several requests.")
        self.files.append(bytearray())

    def _data(self, data: bytes, start: int, end: int) -> None:
        self.files[-1] += data[start:end]

    def _end(self) -> None:
        self.complete = True
