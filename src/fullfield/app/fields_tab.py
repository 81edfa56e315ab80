"""The tab "Fields": the effective receptive field at every stage of one or several models (see `measure.erf`).

Settings are small, so that it takes seconds on two cores: at most 16 images of at most 224 pixels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
from PIL import Image, ImageDraw

from fullfield.app.inputs import Inputs
from fullfield.app.pieces import data_uri, render
from fullfield.app.sentence import problem_box, with_sentence
from fullfield.app.shelf import Shelf
from fullfield.app.upload import Upload, read_upload
from fullfield.errors import ConfigError
from fullfield.tasks.draw import percent

if TYPE_CHECKING:
    from fullfield.measure.erf_result import Erf

__all__ = ["add_fields_tab", "draw_field", "measure_fields"]

IMAGES = [
    ("noise", "noise"),
    ("the picture", "picture"),
    ("blood cells that come with Fullfield", "sample:blood_cells"),
]
MOST_IMAGES, LARGEST, SHOWN = 16, 224, 240  # pixels, and pixels
DECADES = 4  # the colours end at 1e-4 of the peak, as in measure.erf_plot
SQUARE = "#35c6f4"


def add_fields_tab(shelf: Shelf, inputs: Inputs) -> None:
    """Add the tab to the page being built; without a net to look into it says what is missing.

    Args:
        shelf: The models.
        inputs: What is read.
    """
    with gr.Tab("Fields", id="fields"):
        if not shelf.with_net:
            gr.HTML(
                render(
                    "note",
                    text="Exported files give answers alone. Start the page with a run or a registered name to see"
                    " effective receptive fields.",
                )
            )
            return
        models = gr.CheckboxGroup(shelf.with_net, value=shelf.with_net[:1], label="Models", elem_id="field-models")
        with gr.Row():
            source = gr.Dropdown(IMAGES, value="noise", label="Averaged over", filterable=False, elem_id="field-images")
            number = gr.Slider(1, MOST_IMAGES, 4, step=1, label="Images", elem_id="field-count")
        start = gr.Button("Measure the fields", variant="primary", elem_id="field-start")
        problem = problem_box()
        text = gr.HTML(
            "<p class='ff-muted'>Which pixels move the middle unit of each stage, and how much. It takes some seconds a"
            " model.</p>",
            elem_id="field-text",
        )

    @with_sentence("")
    def measure(labels: list[str], where: str, many: int, upload: Upload | None) -> tuple[Any, ...]:
        return (measure_fields(shelf, labels, where, int(many), upload),)

    start.click(
        measure,
        [models, source, number, inputs.picture],
        [problem, text],
        show_progress_on=text,
        concurrency_id="look",
        api_visibility="private",
    )


def measure_fields(shelf: Shelf, labels: Sequence[str], images: str, number: int, upload: Upload | None) -> str:
    """Return the fields of models as a piece of the page.

    Args:
        shelf: The models.
        labels: Of those to measure.
        images: "noise", "picture" or "sample:NAME".
        number: How many images, 1 to 16.
        upload: The visitor's picture, for "picture".

    Raises:
        ConfigError: No model is chosen, there is no picture, or a model has no stages.
        ImageError: The picture can't be read.
        MissingExtraError: PyTorch or matplotlib is not installed.
    """
    if not labels:
        raise ConfigError("choose at least one model whose fields to measure")
    if not 1 <= number <= MOST_IMAGES or images not in [value for _, value in IMAGES]:
        raise ConfigError(f"fields are averaged over 1 to {MOST_IMAGES} images of those that the page offers")
    nets = [shelf.net(label, "effective receptive fields") for label in labels]
    from fullfield.measure.erf import erf_of_layers  # a page of exported files does without PyTorch
    from fullfield.measure.erf_model import open_measured

    where: Any = None if images == "noise" else images
    if images == "picture":
        if upload is None or upload.path is None:
            raise ConfigError("there is no picture yet; give one, or average over noise")
        read_upload(upload)  # says what is wrong with it
        where, number = upload.path, 1
    models, results = [], []
    for label, net in zip(labels, nets, strict=True):
        measured = open_measured(net)
        own = measured.preprocess.image_size
        fixed = callable(getattr(measured.model, "set_input_size", None))  # an attention net knows one size only
        side = own if fixed else min(own, LARGEST)
        found = erf_of_layers(measured, where, image_size=side, count=number, batch_size=4)
        results += found
        models.append({"name": label, "weights": measured.weights, "fields": [_told(result) for result in found]})
    first = results[0]
    what = "the picture" if images == "picture" else first.images
    caption = (
        f"Averaged over {what}; colours are logarithmic, from the peak down to 1 / {10**DECADES:,} of it. The square"
        " holds half of the mass, and r(50 %) is its share of the image's area; half also lies within the stated"
        " distance from the centre."
    )
    return render("fields", models=models, caption=caption, figure=_figure(results))


def draw_field(result: Erf) -> Image.Image:
    """Return a map in colour with the square that holds half of its mass.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps
    except ModuleNotFoundError as error:
        from fullfield.errors import MissingExtraError

        raise MissingExtraError("drawing needs matplotlib: pip install 'fullfield[look]'") from error
    magnitude = np.abs(result.map)
    level = 1 + np.log10(np.maximum(magnitude / magnitude.max(), 10.0**-DECADES)) / DECADES
    picture = Image.fromarray((255 * colormaps["magma"](level)[:, :, :3]).round().astype(np.uint8))
    scale = max(1, -(-SHOWN // max(picture.size)))
    picture = picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.NEAREST)
    square, (y, x) = result.squares[0.5], result.centre
    left, top = scale * (x + 0.5 - square.width / 2), scale * (y + 0.5 - square.height / 2)
    right, bottom = left + scale * square.width - 1, top + scale * square.height - 1
    ImageDraw.Draw(picture).rectangle((left, top, right, bottom), outline=SQUARE, width=2)
    return picture


def _told(result: Erf) -> dict[str, Any]:
    """Return what the page says of one field."""
    picture = draw_field(result)
    radius = f"{result.half_mass_radius:.0f} px"
    half, most = (percent(result.area_ratio[share]) for share in (0.5, 0.99))
    return {
        "layer": result.layer,
        "picture": data_uri(picture),
        "width": picture.width,
        "height": picture.height,
        "short": f"half within {radius}",
        "told": f"Effective receptive field of {result.layer}: half of the mass lies within {radius} of the centre",
        "radius": radius,
        "half": half,
        "most": most,
        "theory": "global" if result.bound.startswith("global") else result.bound,
    }


def _figure(results: Sequence[Erf]) -> str:
    from fullfield.measure.erf_plot import plot_erfs

    with tempfile.TemporaryDirectory() as folder:
        return data_uri(plot_erfs(results, Path(folder) / "erf.png").read_bytes())
