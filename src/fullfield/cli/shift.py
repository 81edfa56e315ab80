"""`fullfield shift MODEL... [--images DIR]`: shift consistency and equivariance errors as a table and a picture."""

from __future__ import annotations

from dataclasses import dataclass

import tyro
from rich.markup import escape
from rich.table import Table

from fullfield.cli.parse import parse
from fullfield.errors import ConfigError
from fullfield.files import write_json
from fullfield.measure.shift import shift
from fullfield.measure.shift_plot import plot_shifts
from fullfield.measure.shift_result import Consistency, Estimate, Shift
from fullfield.progress import console, output

__all__ = ["ShiftArguments", "run"]


@dataclass(frozen=True)
class ShiftArguments:
    """Measure whether a model answers alike, and its maps move along, when images move by some pixels."""

    models: tyro.conf.Positional[tuple[str, ...]]
    """Run folders, checkpoint files, registered models or path/to/file.py:factory, measured side by side."""
    images: tuple[str, ...] = ()
    """Image files, folders or sample:NAME. Without any: noise, which shows the maps only."""
    layers: tuple[str, ...] = ()
    """Layers to measure (`fullfield erf MODEL --list-layers`). By default the last of every stage."""
    max_shift: int | None = None
    """Largest shift in pixels. By default a seventh of the side, 32 of 224."""
    copies: int = 4
    """Shifted copies of an image, of which all pairs are compared."""
    image_size: int | None = None
    """Side in pixels. By default the model's own."""
    count: int = 50
    """At most so many images."""
    out: str = "shift.png"
    """Where to write the picture (.png, .svg, .pdf)."""
    draw: bool = True
    """Draw the picture."""
    json: str | None = None
    """Write the figures to this file."""
    batch_size: int = 8
    """Images at a time; halved where memory runs out."""
    seed: int = 0
    """Of the noise and the shifts."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    pretrained: bool = False
    """For registered models: fetch timm's weights."""


def run(argv: list[str]) -> int:
    """Measure, print and draw."""
    arguments = parse(ShiftArguments, "shift", argv)
    if not arguments.models:
        raise ConfigError("name at least one model: fullfield shift MODEL")
    results = [
        shift(
            model,
            arguments.images or None,
            arguments.layers or None,
            max_shift=arguments.max_shift,
            copies=arguments.copies,
            image_size=arguments.image_size,
            count=arguments.count,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            pretrained=arguments.pretrained,
            device=arguments.device,
        )
        for model in arguments.models
    ]
    _print(results)
    if arguments.json:
        write_json(arguments.json, [result.to_dict() for result in results])
    if arguments.draw:
        console.print(f"picture: {escape(str(plot_shifts(results, arguments.out).absolute()))}", soft_wrap=True)
    return 0


def _print(results: list[Shift]) -> None:
    screen = output()
    answers = Table(box=None, header_style="bold")
    stages = Table(box=None, header_style="bold")
    for table, names in (
        (answers, ("circular shifts", "drift", "cropped shifts", "drift")),
        (stages, ("layer", "stride", "circular", "one pixel", "cropped")),
    ):
        table.add_column("model")
        table.add_column("weights")
        for name in names:
            table.add_column(name, justify="right")
    for result in results:
        answers.add_row(escape(result.model), result.weights, *_answers(result.circular), *_answers(result.cropped))
        for stage in result.stages:
            errors = (stage.circular, stage.one_pixel, stage.cropped)
            stride = "×".join(f"{side:g}" for side in dict.fromkeys(stage.stride))
            cells = map(_error, errors)
            stages.add_row(escape(result.model), result.weights, escape(stage.layer), f"{stride} px", *cells)
    if any(result.circular for result in results):
        screen.print("same likeliest class in pairs of shifted copies, and mean drift of its probability:")
        screen.print(answers)
    screen.print("equivariance error of the maps, 0 where they move along:")
    screen.print(stages)
    for told in dict.fromkeys(
        f"{r.images}, {'×'.join(map(str, r.image_size))} pixels, shifts of up to {r.max_shift}" for r in results
    ):
        screen.print(told)
    if any(result.weights == "random" for result in results):
        screen.print("random weights: the classes mean nothing, the maps show the architecture", style="yellow")


def _answers(found: Consistency | None) -> tuple[str, str]:
    if found is None:
        return "-", "-"
    agreement, drift = found.agreement, found.drift
    return _percent(agreement), _percent(drift)


def _percent(estimate: Estimate) -> str:
    return f"{estimate.mean:.1%}" + ("" if estimate.error is None else f" ± {100 * estimate.error:.1f}")


def _error(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    return f"{estimate.mean:.3f}" + ("" if estimate.error is None else f" ± {estimate.error:.3f}")
