"""Rendering the parts of the page that are our own HTML: macros of `pieces.html.jinja`, with everything escaped."""

from __future__ import annotations

import base64
import functools
import io
from typing import TYPE_CHECKING, Any

from PIL import Image

from fullfield.errors import MissingExtraError
from fullfield.tasks.draw import percent

if TYPE_CHECKING:
    import jinja2

__all__ = ["count", "data_uri", "render"]


def render(piece: str, **values: Any) -> str:
    """Return the HTML of one macro.

    Args:
        piece: Its name.
        values: Its arguments.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    macro = getattr(_templates().get_template("pieces.html.jinja").module, piece)
    return str(macro(**values))


def data_uri(image: Image.Image | bytes) -> str:
    """Return a picture, or the bytes of a PNG file, as a URI that holds it."""
    if isinstance(image, Image.Image):
        file = io.BytesIO()
        image.save(file, format="PNG", optimize=True)
        image = file.getvalue()
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")


def count(number: int) -> str:
    """Return a number with three figures and a prefix: 1,234,000 as "1.23 M"."""
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= 0.9995 * size:
            value = number / size
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return str(number)


@functools.cache
def _templates() -> jinja2.Environment:
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise MissingExtraError("the page needs jinja2: pip install 'fullfield[app]'") from error
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("fullfield.app", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"percent": percent, "count": count}
    return templates
