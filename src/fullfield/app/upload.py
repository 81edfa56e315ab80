"""Pictures that visitors give: uploaded, dropped, pasted or taken with the camera.

gradio would open the file by itself before any code of ours, with another list of formats and a traceback for a broken
one. Here it hands on the file as it came, and `read_upload` reads it as every other command reads images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from fullfield.data.image import decode_image
from fullfield.errors import ImageError

__all__ = ["MAX_PIXELS", "Upload", "picture_input", "read_upload"]

MAX_PIXELS = 64_000_000
"""A picture of more is refused: it would take a machine of this page's kind minutes, and gigabytes."""


@dataclass(frozen=True)
class Upload:
    """A file that a visitor gave."""

    path: str | None
    """Where gradio put it; None if it came without a file."""
    name: str
    """What the visitor calls it."""


def picture_input(label: str) -> gr.Image:
    """Return the box for a picture; handlers get an `Upload`, or None where there is no picture.

    Give it new values only, never new properties: gradio would make the component anew, without this way of reading.

    Args:
        label: Its name on the page.
    """
    box = gr.Image(
        label=label,
        type="filepath",
        sources=["upload", "webcam", "clipboard"],
        image_mode=None,
        height=300,
        elem_id="picture",
        buttons=["fullscreen"],
        webcam_options=gr.WebcamOptions(mirror=False, constraints={"video": {"facingMode": "environment"}}),
    )
    # on the object: a subclass of a gradio component writes a .pyi file beside its source when it is defined
    box.preprocess = _upload_of  # type: ignore[method-assign]
    return box


def read_upload(upload: Upload) -> Image.Image:
    """Return the picture, upright and RGB.

    Raises:
        ImageError: It is no image, damaged, empty or too large.
    """
    try:
        data = b"" if upload.path is None else Path(upload.path).read_bytes()
    except OSError as error:
        raise ImageError(f"{upload.name}: is no longer here. Choose the picture again.") from error
    return decode_image(data, upload.name, max_pixels=MAX_PIXELS)


def _upload_of(payload: Any) -> Any:
    """Take the place of `gr.Image.preprocess`; gradio has made sure that the path is one of its uploads."""
    if payload is None:
        return None
    name = payload.orig_name or (Path(payload.path).name if payload.path else "the picture")
    return Upload(payload.path, name)
