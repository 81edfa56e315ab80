"""`fullfield cam MODEL IMAGE...`: class-activation maps as a picture, with a table of their scores."""

from __future__ import annotations

from dataclasses import dataclass

import tyro
from rich.markup import escape
from rich.table import Table

from fullfield.cli.parse import parse
from fullfield.errors import ConfigError, ImageError, nearest
from fullfield.files import write_json
from fullfield.measure.cam import METHODS, cam, open_with_classes
from fullfield.measure.cam_plot import plot_cams
from fullfield.measure.cam_result import Cam
from fullfield.measure.cam_scores import Curve
from fullfield.progress import console, output
from fullfield.tasks.answers import find_images

__all__ = ["CamArguments", "run"]


@dataclass(frozen=True)
class CamArguments:
    """Show which parts of images speak for a class."""

    model: str
    """Run folder of any task, checkpoint file, registered model, or path/to/file.py:factory."""
    images: tyro.conf.Positional[tuple[str, ...]]
    """Image files and folders."""
    methods: tuple[str, ...] = ("grad-cam",)
    """Of grad-cam, eigen-cam, hires-cam and layer-cam one or several, drawn side by side; "all" for all."""
    layer: str = ""
    """Layer that the map is taken from (`fullfield erf MODEL --list-layers`). By default the last that counts."""
    target: str | None = None
    """Class to explain, by name or index. By default the likeliest, the largest in area, or the surest detection."""
    image_size: int | None = None
    """Side in pixels, of detectors and segmenters the shorter one. By default the model's own."""
    steps: int = 20
    """Points of the deletion and insertion curves; 0 leaves the scores out."""
    count: int = 8
    """At most so many images."""
    out: str = "cam.png"
    """Where to write the picture (.png, .svg, .pdf)."""
    draw: bool = True
    """Draw the picture."""
    json: str | None = None
    """Write the figures to this file."""
    batch_size: int = 8
    """Images at a time while scoring; halved where memory runs out."""
    seed: int = 0
    """Of the random maps that the scores are compared with."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    pretrained: bool = False
    """For a registered model: fetch timm's weights."""


def run(argv: list[str]) -> int:
    """Explain, print and draw; 1 if an image could not be read."""
    arguments = parse(CamArguments, "cam", argv)
    methods = tuple(METHODS) if arguments.methods == ("all",) else arguments.methods
    for method in methods:
        if method not in METHODS:
            known = ", ".join(METHODS)
            raise ConfigError(f"unknown method {method!r}: it is one of {known}, or all{nearest(method, METHODS)}")
    if not methods:
        raise ConfigError(f"name at least one of the methods {', '.join(METHODS)}")
    if arguments.count < 1:
        raise ConfigError(f"count must be at least 1, got {arguments.count}")
    files = find_images(arguments.images)
    if len(files) > arguments.count:
        console.print(f"the first {arguments.count} of {len(files)} images (--count)", style="yellow")
    opened, classes = open_with_classes(
        arguments.model, pretrained=arguments.pretrained, device=arguments.device, image_size=arguments.image_size
    )
    results, failed = [], []
    for file in files[: arguments.count]:
        try:
            results += [
                cam(
                    opened,
                    file,
                    method=method,
                    layer=arguments.layer,
                    target=arguments.target,
                    classes=classes,
                    image_size=arguments.image_size,
                    steps=arguments.steps,
                    batch_size=arguments.batch_size,
                    seed=arguments.seed,
                )
                for method in methods
            ]
        except ImageError as error:
            failed.append(str(error))
    for message in failed:
        console.print(escape(message), style="red", soft_wrap=True)
    if results:
        _print(results)
    if arguments.json:
        write_json(arguments.json, [result.to_dict() for result in results])
    if results and arguments.draw:
        console.print(f"picture: {escape(str(plot_cams(results, arguments.out).absolute()))}", soft_wrap=True)
    return 1 if failed else 0


def _print(results: list[Cam]) -> None:
    screen = output()
    scored = any(result.scores is not None for result in results)
    table = Table(box=None, header_style="bold")
    for name in ("image", "class", "confidence", "method", "layer", *(("deletion", "insertion") if scored else ())):
        table.add_column(name, justify="right" if name in ("confidence", "deletion", "insertion") else "left")
    for result in results:
        scores = result.scores
        areas = []
        if scores is not None:
            areas = [_area(scores.deletion, scores.random_deletion), _area(scores.insertion, scores.random_insertion)]
        size = "×".join(map(str, result.map_size))
        table.add_row(
            escape(result.source),
            escape(result.class_name),
            f"{result.confidence:.1%}",
            result.method + (" (empty)" if result.empty else ""),
            f"{escape(result.layer)} {size}",
            *areas,
        )
    screen.print(table)
    if scored:
        screen.print("deletion: small is good, insertion: large is good; in brackets what random maps give")
    if any(result.empty for result in results):
        screen.print("an empty map: nothing in the layer speaks for the class, everything against it")
    for result in results:
        if result.note:
            screen.print(f"{result.source}: {result.note}", style="yellow", markup=False)
    first = results[0]
    if first.weights == "random":
        screen.print("random weights: the class and the map mean nothing (--pretrained fetches timm's)", style="yellow")


def _area(curve: Curve, random: Curve) -> str:
    return f"{curve.auc:.2f} ({random.auc:.2f})"
