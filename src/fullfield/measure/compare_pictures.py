"""The pictures of a comparison's page as data URIs: receptive fields as PNG, class-activation maps as JPEG.

Both are small files, because a page of ten models has forty fields. Colours come from matplotlib (extra `look`).
"""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from fullfield.errors import MissingExtraError
from fullfield.measure.cam_plot import overlay
from fullfield.measure.cam_result import Cam
from fullfield.measure.erf_plot import DECADES
from fullfield.measure.erf_result import Erf

__all__ = ["cam_uri", "erf_uri", "picture_uri"]

LARGEST = 256  # pixels of a side: larger ones would not be shown larger
LEVELS = 64  # of the colour scale: more can't be told apart, and make the file larger
QUALITY = 85


def erf_uri(result: Erf) -> str:
    """Return a receptive field in colour: logarithmic from 1e-4 of its own peak, as in `erf_plot`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps
    except ModuleNotFoundError as error:
        raise MissingExtraError("drawing needs matplotlib: pip install 'fullfield[look]'") from error
    magnitude = np.abs(result.map)
    decades = np.log10(np.maximum(magnitude / magnitude.max(), 10.0**-DECADES))
    level = np.round((1 + decades / DECADES) * (LEVELS - 1)).astype(np.uint8)
    picture = Image.fromarray(level)
    picture.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    picture.putpalette((colormaps["magma"](np.linspace(0, 1, LEVELS))[:, :3] * 255).astype(np.uint8).tobytes())
    return _uri(picture, "png", optimize=True)


def cam_uri(result: Cam) -> str:
    """Return a class-activation map over its image.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return picture_uri(overlay(result))


def picture_uri(picture: npt.NDArray[np.uint8]) -> str:
    """Return an image (H, W, 3)."""
    image = Image.fromarray(picture)
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return _uri(image, "jpeg", quality=QUALITY, optimize=True)


def _uri(picture: Image.Image, kind: str, **options: object) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
