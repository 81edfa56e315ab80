"""`fullfield choose [DATA] --latency-ms 20`: the backbones that meet a budget on this machine."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import tyro
from rich.markup import escape
from rich.table import Table

from fullfield.cli.parse import parse
from fullfield.cli.share_progress import share_progress
from fullfield.files import write_json
from fullfield.measure.choose import Candidate, Choice, choose
from fullfield.progress import console, output

__all__ = ["ChooseArguments", "run"]


@dataclass(frozen=True)
class ChooseArguments:
    """List the backbones that meet a budget of latency, memory or size here; name at least one of the three."""

    data: tyro.conf.Positional[str | None] = None
    """Image folder, CSV list or sample:NAME to train on: the heads then have its classes."""
    latency_ms: float | None = None
    """The most that a call may take, milliseconds (median)."""
    memory_mb: float | None = None
    """The most that weights and a call may take, MB."""
    size_mb: float | None = None
    """The most that the weights may take in float32, MB."""
    pattern: str = ""
    """Which models, such as 'racnn*'. By default Fullfield's own and their peers."""
    image_size: int | None = None
    """Pixels. By default each model's own."""
    batch: int = 1
    """Images a call."""
    seconds: float = 20.0
    """Time for the final timing of all models that come near the latency."""
    threads: int | None = None
    """CPU threads. By default PyTorch's choice."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    all: bool = False
    """Print the models that do not meet the budget too, with the reasons."""
    out: str | None = None
    """Write all rows to this .csv file."""
    plot: str | None = None
    """Draw the models and the budget to this .png, .svg or .pdf file."""
    json: str | None = None
    """Write all rows to this file as JSON."""


def run(argv: list[str]) -> int:
    """Measure and print; 1 if no model meets the budget."""
    arguments = parse(ChooseArguments, "choose", argv)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    with share_progress("choosing") as report:
        found = choose(
            arguments.data,
            latency_ms=arguments.latency_ms,
            memory_mb=arguments.memory_mb,
            size_mb=arguments.size_mb,
            pattern=arguments.pattern,
            image_size=arguments.image_size,
            batch=arguments.batch,
            seconds=arguments.seconds,
            device=arguments.device,
            on_progress=report,
        )
    _print(found, arguments)
    if arguments.out:
        console.print(f"written to {escape(str(found.save(arguments.out)))}", soft_wrap=True)
    if arguments.plot:
        console.print(f"drawn in {escape(str(found.plot(arguments.plot)))}", soft_wrap=True)
    if arguments.json:
        write_json(arguments.json, found.to_rows())
    return 0 if found.fitting else 1


def _print(found: Choice, arguments: ChooseArguments) -> None:
    screen = output()
    shown = found.candidates if arguments.all else found.fitting
    table = Table(box=None, header_style="bold")
    table.add_column("model", no_wrap=True)
    for name in ("MACs (G)", "params (M)", "weights MB", "p50 ms", "p90 ms", "memory MB", "at"):
        table.add_column(name, justify="right")
    if arguments.all:
        table.add_column("why not")
    for candidate in shown:
        table.add_row(*_cells(candidate), *([escape(candidate.rejected)] if arguments.all else []))
    if shown:
        screen.print(table)
    units = {"ms": "ms", "mb": "MB"}
    given = [(*name.split("_"), limit) for name, limit in vars(found.limits).items() if limit is not None]
    budget = ", ".join(f"{name} ≤ {limit:g} {units[unit]}" for name, unit, limit in given)
    env = found.environment
    images = "one image" if found.batch == 1 else f"{found.batch} images"
    threads = "one thread" if env["threads"] == "1" else f"{env['threads']} threads"
    screen.print(
        f"{len(found.fitting)} of {len(found.candidates)} models meet {budget} with {images} a call on {env['device']},"
        f" {threads}, float32, each in its faster memory layout.",
        soft_wrap=True,
    )
    if found.fitting:
        screen.print("In the order of MACs: their accuracy on your data is not known until they are trained.")
        screen.print(f"next: fullfield train {arguments.data or 'DATA'} --model {found.fitting[0].model}", markup=False)
    else:
        console.print(_nearest(found), style="yellow", soft_wrap=True)


def _cells(candidate: Candidate) -> list[str]:
    row = candidate.to_row()
    figures = (
        ("macs", 1e-9, ".3f"),
        ("params", 1e-6, ".2f"),
        ("size_mb", 1, ".1f"),
        ("p50_ms", 1, ".1f"),
        ("p90_ms", 1, ".1f"),
        ("memory_mb", 1, ".0f"),
        ("image_size", 1, ".0f"),
    )
    cells = ["–" if row[name] is None else f"{scale * row[name]:{digits}}" for name, scale, digits in figures]
    return [candidate.model, *cells]


def _nearest(found: Choice) -> str:
    """Say which model comes nearest, and why it does not do."""
    run = [c for c in found.candidates if c.speed is not None]
    counted = [c for c in found.candidates if c.size_mb is not None]
    if found.limits.latency_ms is not None and run:
        nearest = min(run, key=lambda c: c.speed.samples.median_s if c.speed else 0.0)
    else:
        nearest = min(counted or found.candidates, key=lambda c: c.size_mb or 0.0)
    return (
        f"{nearest.model} comes nearest: {nearest.rejected}. Allow more, or use a smaller --image-size; --all lists"
        " every model with its reason"
    )
