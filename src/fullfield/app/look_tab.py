"""The tab "Class map": which parts of the picture speak for a class (see `measure.cam`)."""

from __future__ import annotations

from typing import Any

import gradio as gr
from PIL import Image, ImageDraw

from fullfield.app.inputs import Inputs
from fullfield.app.pieces import render
from fullfield.app.predict_tab import drawn_picture
from fullfield.app.sentence import problem_box, with_sentence
from fullfield.app.shelf import Shelf
from fullfield.app.upload import Upload, read_upload
from fullfield.errors import ConfigError
from fullfield.tasks.draw import percent

__all__ = ["add_look_tab", "explain"]

METHODS = ["grad-cam", "hires-cam", "layer-cam", "eigen-cam"]  # of measure.cam, which needs PyTorch to be asked
LIKELIEST = -1
BOX = "#35c6f4"
SMALLEST = 480  # width of the shown map, pixels


def add_look_tab(shelf: Shelf, inputs: Inputs) -> None:
    """Add the tab to the page being built.

    Args:
        shelf: The models.
        inputs: What is read.
    """
    with gr.Tab("Class map", id="class-map"):
        with gr.Row():
            target = gr.Dropdown(
                _choices(shelf, shelf.labels[0]), value=LIKELIEST, label="Speaks for", elem_id="map-class"
            )
            method = gr.Dropdown(METHODS, value=METHODS[0], label="Method", filterable=False, elem_id="map-method")
        start = gr.Button("Show the map", variant="primary", elem_id="map-start")
        problem = problem_box()
        drawn = drawn_picture("Class-activation map over the picture", "map-picture")
        text = gr.HTML(elem_id="map-text")

    @with_sentence(gr.update(value=None, visible=False), "")
    def look(label: str, upload: Upload | None, index: int, name: str) -> tuple[Any, ...]:
        if upload is None:
            raise ConfigError("there is no picture yet; give one, then ask for the map")
        picture, html = explain(shelf, label, read_upload(upload), None if index == LIKELIEST else index, name)
        return gr.update(value=picture, visible=True), html

    def clear(label: str) -> tuple[Any, ...]:
        choices = gr.update(choices=_choices(shelf, label), value=LIKELIEST)
        return choices, gr.update(visible=False), gr.update(value=None, visible=False), ""

    start.click(
        look,
        [inputs.model, inputs.picture, target, method],
        [problem, drawn, text],
        show_progress_on=text,
        concurrency_id="look",
        api_visibility="private",
    )
    gr.on(
        [inputs.picture.change, inputs.model.change],
        clear,
        inputs.model,
        [target, problem, drawn, text],
        show_progress="hidden",
        api_visibility="private",
    )


def explain(shelf: Shelf, label: str, image: Image.Image, target: int | None, method: str) -> tuple[Image.Image, str]:
    """Return the map over the picture, and what it shows in words.

    Args:
        shelf: The models.
        label: Of one of them.
        image: Upright, RGB.
        target: A class by its position; None for the likeliest.
        method: One of `measure.cam.METHODS`.

    Raises:
        ConfigError: The model is an exported file, or there is nothing of this class to explain.
        MissingExtraError: grad-cam or PyTorch is not installed.
    """
    net = shelf.net(label, "class-activation maps")
    from fullfield.measure import cam  # a page of exported files does without PyTorch
    from fullfield.measure.cam_plot import overlay

    found = cam(net, image, method=method, target=target, steps=0)
    picture = Image.fromarray(overlay(found))
    scale = max(1, -(-SMALLEST // picture.width))
    picture = picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.BICUBIC)
    if found.box is not None:
        edges = [scale * edge for edge in found.box]
        ImageDraw.Draw(picture).rectangle(edges, outline=BOX, width=max(2, picture.width // 240))
    kinds = {"classify": "probability", "segment": "mean probability of its pixels", "detect": "score of the box"}
    size = "×".join(map(str, found.map_size))
    told = (
        f"What speaks for {found.class_name} ({kinds[found.task]} {percent(found.confidence)}), by {found.method}"
        f" at {found.layer}, {size} units. Bright places speak for it the most."
    )
    return picture, render("map_caption", found=found, told=told)


def _choices(shelf: Shelf, label: str) -> list[tuple[str, int]]:
    classes = shelf[label].predictor.classes if label in shelf.labels else ()
    return [("the likeliest", LIKELIEST), *((name, index) for index, name in enumerate(classes))]
