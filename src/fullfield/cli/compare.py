"""`fullfield compare MODEL... [DATA]`: several models on one page; with `--task`, as backbones of dense models."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

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
from fullfield.measure.compare_dense import SIZES, compare_dense
from fullfield.measure.compare_result import QUICK, USUAL, Budget, Comparison
from fullfield.measure.dense_comparison import DenseComparison, Size, size_words
from fullfield.progress import console, output
from fullfield.train.settings import TrainSettings

__all__ = ["CompareArguments", "run"]


@dataclass(frozen=True)
class CompareArguments:
    """Measure models side by side: one page with accuracy, cost, speed, receptive fields and activation maps."""

    models: tyro.conf.Positional[tuple[str, ...]]
    """Run folders, checkpoint files, file.py:factory or registered models; after them DATA, if any: an image folder,
    CSV list or sample:NAME, whose images are shown to the models."""
    data: str | None = None
    """The same as DATA after the models."""
    task: Literal["classify", "segment", "detect"] = "classify"
    """segment, detect: registered models as backbones under one head; parameters, MACs, latency and memory."""
    head: str | None = None
    """Segment, detect: by default upernet with 150 classes, mask_rcnn with 80."""
    head_args: tuple[str, ...] = ()
    """Segment, detect: arguments of the head, as key=value (channels=512)."""
    sizes: tuple[str, ...] = ()
    """Segment, detect: HEIGHTxWIDTH of the images, counted at all and timed at the first. By default 512x512 and
    800x1333."""
    speed: bool = True
    """Segment, detect: measure latency and memory, and not only count."""
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
    models, data = _split(arguments.models, arguments.data) if arguments.task == "classify" else ((), None)
    for path, kinds in ((arguments.out, (".html",)), (arguments.plot, (".png", ".svg", ".pdf"))):
        if path is not None:
            _check_file(Path(path), kinds)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    command = shlex.join(["fullfield", "compare", *argv])
    if arguments.task != "classify":
        return _run_dense(arguments, command)
    _refuse(arguments, _DENSE_ONLY, "needs --task segment or --task detect")
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
            command=command,
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


_DENSE_ONLY = ("head", "head_args", "sizes", "speed")
_CLASSIFY_ONLY = ("data", "accuracy", "accuracy_source", "parts", "erf_images", "batch", "image_size", "pretrained")


def _refuse(arguments: CompareArguments, names: tuple[str, ...], why: str) -> None:
    """Refuse options of another task, rather than ignore them."""
    for field in fields(arguments):
        if field.name in names and getattr(arguments, field.name) != field.default:
            raise ConfigError(f"--{field.name.replace('_', '-')} {why}; leave it out")


def _run_dense(arguments: CompareArguments, command: str) -> int:
    _refuse(arguments, _CLASSIFY_ONLY, f"means nothing with --task {arguments.task}")
    with share_progress("comparing") as report:
        found = compare_dense(
            arguments.models,
            arguments.task,
            head=arguments.head,
            head_arguments=TrainSettings("", head_args=arguments.head_args).head_arguments(),
            sizes=tuple(map(_size, arguments.sizes)) or SIZES,
            timed=arguments.speed,
            budget=_budget(arguments),
            device=arguments.device,
            seed=arguments.seed,
            command=command,
            on_progress=report,
        )
    if arguments.json:
        write_json(arguments.json, found.to_dict())
    _print_dense(found)
    if not found.models:
        return 1
    console.print(f"page: {escape(str(found.save(arguments.out).absolute()))}", soft_wrap=True)
    table = found.save(Path(arguments.out).with_suffix(".csv"))
    console.print(f"figures: {escape(str(table.absolute()))}", soft_wrap=True)
    if arguments.plot:
        console.print(f"drawn in {escape(str(found.plot(arguments.plot)))}", soft_wrap=True)
    return 0


def _size(word: str) -> Size:
    height, _, width = word.lower().partition("x")
    if not height.isdigit() or not width.isdigit():
        raise ConfigError(f"--sizes takes HEIGHTxWIDTH in pixels, such as 512x512, got {word!r}")
    return int(height), int(width)


def _print_dense(found: DenseComparison) -> None:
    screen = output()
    if found.models:
        first = found.models[0]
        table = Table(box=None, header_style="bold", title=escape(found.title), title_justify="left")
        table.add_column("backbone")
        names = ["params (M)", "with head"]
        for cost in first.costs:
            names += [f"GMACs at {size_words(cost.size)}", "with head"]
        for name in (*names, "p50 ms", f"speed / {escape(first.model)}", "memory MB"):
            table.add_column(name, justify="right")
        for model in found.models:
            row = model.to_rows()[0]
            cells = [f"{row['backbone_params'] / 1e6:.2f}", f"{row['params'] / 1e6:.2f}"]
            for cost in model.costs:
                cells += [f"{cost.backbone_macs / 1e9:.1f}", f"{cost.macs / 1e9:.1f}"]
            speed = model.speed
            cells.append("–" if speed is None else f"{row['p50_ms']:.1f}")
            cells.append("–" if speed is None or speed.ratio is None else str(speed.ratio))
            cells.append("–" if row["peak_memory_mb"] is None else f"{row['peak_memory_mb']:.0f}")
            table.add_row(escape(model.model), *cells)
        screen.print(table)
    for item in found.not_measured:
        console.print(f"not measured: {item.part} of {item.model}: {item.reason}", style="yellow", markup=False)


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
