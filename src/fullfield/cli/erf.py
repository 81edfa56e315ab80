"""`fullfield erf MODEL... [--images DIR]`: effective receptive fields as a table and a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro
from rich.markup import escape
from rich.table import Table

from fullfield.cli.parse import parse
from fullfield.errors import ConfigError
from fullfield.files import write_json
from fullfield.measure.erf import erf_of_layers, layers_of
from fullfield.measure.erf_model import open_measured, with_random_weights
from fullfield.measure.erf_plot import plot_erfs
from fullfield.measure.erf_result import Erf
from fullfield.progress import console, output

__all__ = ["ErfArguments", "run"]


@dataclass(frozen=True)
class ErfArguments:
    """Measure which input pixels move a unit of a model, and how much."""

    models: tyro.conf.Positional[tuple[str, ...]]
    """Run folders, checkpoint files, registered models, or file.py:factory of your own, drawn side by side. Of a
    detector or segmenter its backbone is measured."""
    images: tuple[str, ...] = ()
    """Image files, folders or sample:NAME. Without any: noise."""
    layers: tuple[str, ...] = ()
    """Layers to measure, "stages" for the last of every stage. By default the last stage."""
    list_layers: bool = False
    """Print the layers that have a map, and measure nothing."""
    position: tuple[int, int] | None = None
    """Row and column of the unit in the layer's map. By default the centre."""
    preset: Literal["fullfield", "replknet"] = "fullfield"
    """replknet: exactly the published procedure, at 1024 pixels."""
    channel: int | None = None
    """One channel of the layer. By default all of them."""
    gradient: Literal["absolute", "positive", "signed"] | None = None
    """What of the gradient counts. By default the preset's."""
    image_size: int | None = None
    """Side in pixels. By default the preset's, or the model's own."""
    count: int | None = None
    """At most so many images. By default 50."""
    random: bool = False
    """Beside every model, the same with random weights."""
    out: str = "erf.png"
    """Where to write the picture (.png, .svg, .pdf)."""
    draw: bool = True
    """Draw the picture."""
    json: str | None = None
    """Write the figures to this file."""
    batch_size: int = 8
    """Images at a time; halved where memory runs out."""
    seed: int = 0
    """Of the noise, and of the channels' signs."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    pretrained: bool = False
    """For registered models: fetch timm's weights."""


def run(argv: list[str]) -> int:
    """Measure, print and draw."""
    arguments = parse(ErfArguments, "erf", argv)
    if not arguments.models:
        raise ConfigError("name at least one model: fullfield erf MODEL")
    if arguments.list_layers:
        _print_layers(arguments)
        return 0
    results = _measure(arguments)
    _print(results)
    if arguments.draw:
        console.print(f"picture: {escape(str(plot_erfs(results, arguments.out).absolute()))}", soft_wrap=True)
    if arguments.json:
        write_json(arguments.json, [result.to_dict() for result in results])
    return 0


def _measure(arguments: ErfArguments) -> list[Erf]:
    results = []
    for source in arguments.models:
        opened = open_measured(
            source, pretrained=arguments.pretrained, device=arguments.device, image_size=arguments.image_size
        )
        for measured in (opened, with_random_weights(opened)) if arguments.random else (opened,):
            results += erf_of_layers(
                measured,
                arguments.images or None,
                None if arguments.layers == ("stages",) else arguments.layers or ("",),
                position=arguments.position,
                preset=arguments.preset,
                channels=arguments.channel,
                gradient=arguments.gradient,
                image_size=arguments.image_size,
                count=arguments.count,
                batch_size=arguments.batch_size,
                seed=arguments.seed,
            )
    return results


def _print_layers(arguments: ErfArguments) -> None:
    for source in arguments.models:
        measured = open_measured(source, device="cpu", image_size=arguments.image_size)
        table = Table(box=None, header_style="bold", title=escape(measured.name), title_justify="left")
        for name in ("layer", "kind", "channels", "map"):
            table.add_column(name, no_wrap=True)
        for entry in layers_of(measured, arguments.image_size):
            table.add_row(escape(entry.layer), entry.kind, str(entry.channels), "×".join(map(str, entry.size)))
        output().print(table)


def _print(results: list[Erf]) -> None:
    screen = output()
    table = Table(box=None, header_style="bold")
    table.add_column("model")
    table.add_column("layer")
    table.add_column("weights")
    for share in results[0].squares:
        table.add_column(f"r({share:.0%})", justify="right")
    for name in ("half-mass radius", "coverage", "strips", "theoretical field"):
        table.add_column(name, justify="right")
    for result in results:
        areas = [_with_error(area.ratio, result.errors.get(f"area_ratio {t}")) for t, area in result.squares.items()]
        table.add_row(
            escape(result.model),
            escape(result.layer),
            result.weights,
            *areas,
            f"{result.half_mass_radius:.1f} px",
            f"{result.coverage:.1%}",
            f"{result.strips:+.2f}",
            escape(result.bound),
        )
    screen.print(table)
    first = results[0]
    size = "×".join(map(str, first.image_size))
    screen.print(f"{first.images}, {size} pixels, preset {first.preset}; r(t): area of the centred square with t of it")
    if any(result.weights == "random" for result in results):
        screen.print("random weights: the field shows the initialisation, not what is learned", style="yellow")


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.1%}" if error is None else f"{value:.1%} ± {100 * error:.1f}"
