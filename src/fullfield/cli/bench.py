"""`fullfield bench MODEL...`: latency, throughput and peak memory here.

`--cost` and `--breakdown` take models apart instead, and `--op NAME` measures an operator's paths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from rich.markup import escape
from torch import nn

from fullfield.cli.bench_tables import (
    breakdown_tables,
    cost_note,
    cost_tables,
    roofline_note,
    speed_note,
    speed_tables,
)
from fullfield.cli.parse import parse
from fullfield.cli.share_progress import share_progress
from fullfield.errors import ConfigError, nearest
from fullfield.files import write_json
from fullfield.measure.op_speed import bench_depthwise
from fullfield.measure.profile import Profile, profile
from fullfield.measure.runners import open_named
from fullfield.measure.speed import Bench, bench
from fullfield.measure.tables import write_rows
from fullfield.progress import console, output
from fullfield.tasks.source import pick_device

__all__ = ["BenchArguments", "run"]

OPERATORS = ("depthwise",)


@dataclass(frozen=True)
class BenchArguments:
    """Time models against each other on this machine, take them apart (--cost, --breakdown), or time --op."""

    models: tyro.conf.Positional[tuple[str, ...]] = ()
    """Registered models, run folders, checkpoint files, or path/to/file.py:factory of your own."""
    vs: str | None = None
    """The peer of all ratios: a model too. By default the first of several models."""
    cost: bool = False
    """Instead: parameters, MACs, FLOPs, bytes and roofline bounds per module and operator, memory of a training step.
    With this and --breakdown the first of the modes, batch sizes, layouts and precisions counts."""
    breakdown: bool = False
    """Instead: time per operator and per module."""
    depth: int = 2
    """Names in a module's path, for --cost and --breakdown: 1 for "stages", 2 for "stages.0"."""
    roofline: bool = True
    """Measure this machine's bandwidth and peak first (seconds), and say what share of its roofline is reached."""
    batch_sizes: tuple[int, ...] = (1, 8)
    """Images a call."""
    modes: tuple[str, ...] = ("forward",)
    """forward, train."""
    layouts: tuple[str, ...] = ("nchw", "channels_last")
    """nchw, channels_last."""
    precisions: tuple[str, ...] = ("float32",)
    """float32, bf16, fp16 (autocast)."""
    backends: tuple[str, ...] = ("eager",)
    """eager, compile, onnxruntime, openvino."""
    fused: bool = False
    """Also time models with folded norms and merged branches."""
    image_size: int | None = None
    """Pixels. By default each model's own."""
    seconds: float = 10.0
    """Time for each mode and batch size, all candidates together."""
    threads: int | None = None
    """CPU threads. By default PyTorch's choice."""
    device: str = "cpu"
    """cpu, cuda, mps, auto."""
    op: str | None = None
    """Time an operator's paths instead of models: depthwise."""
    out: str | None = None
    """Write all rows to this .csv file."""
    plot: str | None = None
    """Draw to this .png, .svg or .pdf file: throughput over batch size, or one model's MACs or times per module."""
    json: str | None = None
    """Write all rows to this file as JSON."""


def run(argv: list[str]) -> int:
    """Measure and print."""
    arguments = parse(BenchArguments, "bench", argv)
    arguments = replace(arguments, device=str(pick_device(arguments.device)))
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise ConfigError(f"threads must be at least 1, got {arguments.threads}")
        torch.set_num_threads(arguments.threads)
    if arguments.op is not None:
        return _run_operator(arguments)
    if not arguments.models:
        raise ConfigError("name at least one model, as in `fullfield bench racnn_tiny --vs resnet50`")
    if arguments.cost or arguments.breakdown:
        return _run_profile(arguments)
    with share_progress("timing") as report:
        measured = _bench(arguments, report)
    screen = output()
    for table in speed_tables(measured):
        screen.print(table)
    screen.print(speed_note(measured), style="dim", markup=False)
    if arguments.out:
        console.print(f"written to {escape(str(measured.save(arguments.out)))}", soft_wrap=True)
    if arguments.plot:
        console.print(f"drawn in {escape(str(measured.plot(arguments.plot)))}", soft_wrap=True)
    if arguments.json:
        write_json(arguments.json, measured.to_rows())
    return 0


def _bench(arguments: BenchArguments, report: Callable[[str, float], None]) -> Bench:
    return bench(
        arguments.models,
        vs=arguments.vs,
        batch_sizes=arguments.batch_sizes,
        modes=arguments.modes,
        layouts=arguments.layouts,
        precisions=arguments.precisions,
        backends=arguments.backends,
        fused=arguments.fused,
        image_size=arguments.image_size,
        seconds=arguments.seconds,
        roofline=arguments.roofline,
        device=arguments.device,
        on_progress=report,
    )


def _run_profile(arguments: BenchArguments) -> int:
    if arguments.backends != ("eager",):
        raise ConfigError("--cost and --breakdown run models eagerly, operator by operator; leave out --backends")
    names = list(dict.fromkeys([*arguments.models, *([arguments.vs] if arguments.vs else [])]))
    if arguments.plot and (len(names) > 1 or (arguments.cost and arguments.breakdown)):
        raise ConfigError("--plot draws one model, its --cost or its --breakdown")
    for option in ("modes", "batch_sizes", "layouts", "precisions"):
        if not getattr(arguments, option):
            raise ConfigError(f"--{option.replace('_', '-')} needs a value")
    models = {name: open_named(name, arguments.image_size) for name in names}
    found = []
    screen = output()
    for name, model in models.items():
        with share_progress("taking apart") as report:
            entry = _profile(arguments, name, model, report)
        found.append(entry)
        for table in cost_tables(entry) if arguments.cost else ():
            screen.print(table)
        if arguments.cost:
            screen.print(cost_note(entry))
        for table in breakdown_tables(entry) if arguments.breakdown else ():
            screen.print(table)
        screen.print(roofline_note(entry), style="dim")
    rows = [row for entry in found for row in entry.to_rows()]
    if arguments.out:
        console.print(f"written to {escape(str(write_rows(rows, arguments.out)))}", soft_wrap=True)
    if arguments.plot:
        console.print(f"drawn in {escape(str(_plot(arguments, found[0])))}", soft_wrap=True)
    if arguments.json:
        write_json(arguments.json, rows)
    return 0


def _profile(arguments: BenchArguments, name: str, model: nn.Module, report: Callable[[str, float], None]) -> Profile:
    return profile(
        model,
        mode=arguments.modes[0],
        batch=arguments.batch_sizes[0],
        layout=arguments.layouts[0],
        precision=arguments.precisions[0],
        fused=arguments.fused,
        image_size=arguments.image_size,
        depth=arguments.depth,
        seconds=min(arguments.seconds, 10.0),
        device=arguments.device,
        name=name,
        on_progress=report,
    )


def _plot(arguments: BenchArguments, found: Profile) -> Path:
    assert arguments.plot is not None  # noqa: S101 - for the type checker
    if arguments.cost:
        return found.report.plot(arguments.plot, arguments.depth)
    return (found.modules or found.kinds).plot(arguments.plot)


def _run_operator(arguments: BenchArguments) -> int:
    if arguments.op not in OPERATORS:
        raise ConfigError(
            f"--op is one of {', '.join(OPERATORS)}, got {arguments.op!r}{nearest(str(arguments.op), OPERATORS)}"
        )
    if arguments.models:
        raise ConfigError(f"--op {arguments.op} takes no model; leave out {' '.join(arguments.models)}")
    for option in ("cost", "breakdown", "plot"):
        if getattr(arguments, option):
            raise ConfigError(f"--{option} is of models; leave it out with --op {arguments.op}")
    with share_progress(f"timing {arguments.op}") as report:
        measured = bench_depthwise(on_progress=report)
    output().print(measured.table(), markup=False)
    if arguments.out:
        console.print(f"written to {escape(str(measured.save(Path(arguments.out))))}", soft_wrap=True)
    if arguments.json:
        write_json(arguments.json, measured.to_rows())
    return 0
