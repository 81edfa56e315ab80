"""`fullfield compare MODEL... [DATA]`: several models on one page."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from rich.markup import escape
from rich.table import Table

from fullfield.cli.parse import parse
from fullfield.cli.share_progress import share_progress
from fullfield.data.sample import SAMPLE_PREFIX
from fullfield.errors import ConfigError
from fullfield.files import write_json
from fullfield.measure.compare import PARTS, compare
from fullfield.measure.compare_result import QUICK, USUAL, Budget, Comparison
from fullfield.progress import console, output

__all__ = ["CompareArguments", "run"]


@dataclass(frozen=True)
class CompareArguments:
    """Measure models side by side: one page with accuracy, cost, speed, receptive fields and activation maps."""

    models: tyro.conf.Positional[tuple[str, ...]]
    """Run folders, checkpoint files, file.py:factory or registered models; after them DATA, if any: an image folder,
    CSV list or sample:NAME, whose images are shown to the models."""
    data: str | None = None
    """The same as DATA after the models."""
    accuracy: tuple[str, ...] = ()
    """Known top-1 accuracies in percent, as MODEL=82.9. Runs bring their own."""
    accuracy_source: str = ""
    """Where these accuracies come from, in words."""
    parts: tuple[str, ...] = PARTS
    """What to measure: accuracy, cost, stages, erf, cam, speed."""
    quick: bool = False
    """Measure less: two images a field, 5 seconds of timing, 4 images a call."""
    erf_images: int | None = None
    """Images of a receptive field. By default 8."""
    seconds: float | None = None
    """Time for each of the two batch sizes, all models together. By default 30."""
    batch: int | None = None
    """Images a call for throughput and memory. By default 8."""
    image_size: int | None = None
    """Pixels. By default each model's own."""
    threads: int | None = None
    """CPU threads. By default PyTorch's choice."""
    seed: int = 0
    """Of random weights, noise and random maps."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    pretrained: bool = False
    """For registered models: fetch timm's weights."""
    out: str = "compare.html"
    """Where to write the page."""
    plot: str | None = None
    """Also draw the charts to this .png, .svg or .pdf file."""
    json: str | None = None
    """Write all figures to this file."""


def run(argv: list[str]) -> int:
    """Measure, print and write the page; 1 if no model could be built."""
    arguments = parse(CompareArguments, "compare", argv)
    models, data = _split(arguments.models, arguments.data)
    for path, kinds in ((arguments.out, (".html",)), (arguments.plot, (".png", ".svg", ".pdf"))):
        if path is not None:
            _check_file(Path(path), kinds)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    with share_progress("comparing") as report:
        found = compare(
            models,
            data,
            accuracy=_accuracies(arguments.accuracy),
            accuracy_source=arguments.accuracy_source,
            parts=arguments.parts,
            budget=_budget(arguments),
            image_size=arguments.image_size,
            device=arguments.device,
            pretrained=arguments.pretrained,
            seed=arguments.seed,
            command=shlex.join(["fullfield", "compare", *argv]),
            on_progress=report,
        )
    if arguments.json:
        write_json(arguments.json, found.to_dict())
    _print(found)
    if not found.models:
        return 1
    console.print(f"page: {escape(str(found.save(arguments.out).absolute()))}", soft_wrap=True)
    if arguments.plot:
        console.print(f"drawn in {escape(str(found.plot(arguments.plot)))}", soft_wrap=True)
    return 0


def _split(words: tuple[str, ...], data: str | None) -> tuple[tuple[str, ...], str | None]:
    """Tell the models from DATA, which may stand behind them."""
    if not words:
        raise ConfigError("name at least one model, as in `fullfield compare racnn_tiny resnet50`")
    if not _is_data(words[-1]):
        return words, data
    if data is not None:
        raise ConfigError(f"{words[-1]} and --data {data} are two data sets; name one")
    if len(words) == 1:
        raise ConfigError(f"{words[0]} is no model; name the models before it")
    return words[:-1], words[-1]


def _is_data(word: str) -> bool:
    path = Path(word)
    is_run = (path / "config.yaml").exists() or (path / "checkpoints").is_dir()
    return word.startswith(SAMPLE_PREFIX) or path.suffix.lower() == ".csv" or (path.is_dir() and not is_run)


def _check_file(path: Path, kinds: tuple[str, ...]) -> None:
    """Refuse what could not be written before minutes are spent on measuring."""
    if path.suffix not in kinds:
        raise ConfigError(f"{path} must end in {' or '.join(kinds)}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"the folder of {path} does not exist; make it first")


def _accuracies(words: tuple[str, ...]) -> dict[str, float]:
    found = {}
    for word in words:
        name, _, value = word.rpartition("=")
        try:
            found[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise ConfigError(f"--accuracy takes MODEL=PERCENT, such as racnn_tiny=82.9, got {word!r}")
    return found


def _budget(arguments: CompareArguments) -> Budget:
    given = {
        "erf_images": arguments.erf_images,
        "timing_seconds": arguments.seconds,
        "batch": arguments.batch,
    }
    usual = QUICK if arguments.quick else USUAL
    return replace(usual, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


def _print(found: Comparison) -> None:
    screen = output()
    table = Table(box=None, header_style="bold")
    table.add_column("model")
    table.add_column("weights")
    names = ("top-1", "params (M)", "MACs (G)", "p50 ms", f"images/s at {found.budget.batch}", "memory MB", "r(50%)")
    for name in names:
        table.add_column(name, justify="right")
    for model in found.models:
        row = model.to_row()
        figures = (
            ("top1", 100, ".1f", "%"),
            ("params", 1e-6, ".2f", ""),
            ("macs", 1e-9, ".3f", ""),
            ("p50_ms", 1, ".1f", ""),
            ("images_per_s", 1, ".1f", ""),
            ("peak_memory_mb", 1, ".0f", ""),
            ("erf_area_50", 100, ".1f", "%"),
        )
        cells = [
            "–" if row[name] is None else f"{scale * row[name]:{digits}}{unit}" for name, scale, digits, unit in figures
        ]
        table.add_row(escape(model.label), model.weights, *cells)
    if found.models:
        screen.print(table)
    for part, models, reason in found.gaps():
        of = f" of {', '.join(models)}" if models else ""
        console.print(f"not measured: {part}{escape(of)}: {escape(reason)}", style="yellow", soft_wrap=True)
    for note in found.notes:
        console.print(note, style="yellow", soft_wrap=True)
