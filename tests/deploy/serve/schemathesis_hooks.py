"""What OpenAPI can't say: a body of an image type is an image, so that valid requests are made, too."""

from __future__ import annotations

import io

import schemathesis
from hypothesis import strategies as st
from PIL import Image


def _file(form: str, width: int, height: int, grey: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB" if form != "PPM" else "L", (width, height), (grey,) * 3 if form != "PPM" else grey).save(file, form)
    return file.getvalue()


TYPES = {
    "image/jpeg": "JPEG",
    "image/png": "PNG",
    "image/webp": "WEBP",
    "image/gif": "GIF",
    "image/bmp": "BMP",
    "image/tiff": "TIFF",
    "image/x-portable-pixmap": "PPM",
    "image/x-portable-graymap": "PPM",
}
for kind, form in TYPES.items():
    # The fake net misbehaves at widths above 12: see `fake.ODD`.
    images = st.builds(_file, st.just(form), st.integers(1, 12), st.integers(1, 12), st.integers(0, 255))
    schemathesis.openapi.media_type(kind, images)
schemathesis.openapi.format(
    "binary", st.builds(_file, st.just("PNG"), st.integers(1, 12), st.integers(1, 12), st.integers(0, 255))
)
