"""`fullfield export RUN --to onnx`: a file that runs elsewhere, compared with PyTorch as soon as it is written."""

from __future__ import annotations

from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from fullfield.cli.parse import parse
from fullfield.deploy.export import Exported, export
from fullfield.deploy.verification import Verification
from fullfield.errors import ConfigError
from fullfield.files import write_json
from fullfield.progress import console, output

__all__ = ["ExportArguments", "run"]


@dataclass(frozen=True)
class ExportArguments:
    """Write a model as one file for other runtimes, with its classes and preprocessing, and verify it at once."""

    run: str
    """Run folder, weights file, or registered model."""
    to: str = "onnx"
    """onnx, openvino, torch, coreml, executorch."""
    precision: str = "fp32"
    """fp32, fp16, int8 (onnx and openvino; fitted to the run's training images, or to --calibrate)."""
    size: tuple[int, ...] = ()
    """The only images that it takes: a side, or height and width, in pixels. By default any, where that can be."""
    batch: int | None = None
    """Images a call; by default any number, where that can be."""
    out: str | None = None
    """The file, or a folder for it. By default in the run's folder; of a registered model, in this one."""
    calibrate: tuple[str, ...] = ()
    """Images and folders that int8 is fitted to."""
    images: tuple[str, ...] = ()
    """Images and folders whose answers are compared with PyTorch's. By default held-out images of the run."""
    preprocessing_inside: bool = False
    """Resize and crop inside the graph too (onnx)."""
    verify: bool = True
    """Run the file beside PyTorch."""
    overwrite: bool = False
    """Replace the file if it exists."""
    pretrained: bool = False
    """For a registered model: fetch timm's weights."""
    json: str | None = None
    """Write the verification to this file too."""


def run(argv: list[str]) -> int:
    """Export, verify and print; 1 if the file does not do what PyTorch does."""
    arguments = parse(ExportArguments, "export", argv)
    with console.status("") as status:
        done = export(
            arguments.run,
            arguments.to,
            arguments.out,
            precision=arguments.precision,
            size=_size(arguments.size),
            batch=arguments.batch,
            preprocessing_inside=arguments.preprocessing_inside,
            calibration=arguments.calibrate or None,
            images=arguments.images or None,
            verify=arguments.verify,
            overwrite=arguments.overwrite,
            pretrained=arguments.pretrained,
            on_step=lambda step: status.update(escape(step)),
        )
    screen = output()
    screen.print(_table(done))
    found = done.verification
    if found is None:
        console.print("not verified: nothing is known of what the file gives", style="yellow")
    else:
        if arguments.json:
            write_json(arguments.json, found.to_dict())
        _print_remarks(found)
    if found is not None and found.passed is False:
        return 1
    screen.print(f"next: fullfield predict {done.path} IMAGES", markup=False, soft_wrap=True)
    return 0


def _size(sides: tuple[int, ...]) -> tuple[int, int] | None:
    if len(sides) > 2:
        raise ConfigError(f"--size has {len(sides)} numbers; give one side, or height and width")
    return (sides[0], sides[-1]) if sides else None


def _table(done: Exported) -> Table:
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    description, found = done.description, done.verification
    table.add_row("file", escape(str(done.path)))
    table.add_row("input", _input(done))
    weights = "" if description.trained else ", random weights"
    table.add_row("precision", description.precision + weights)
    if found is None:
        return table
    table.add_row("size", f"{found.megabytes:.2f} MB")
    if found.calibration is not None:
        table.add_row("fitted to", escape(found.calibration))
    if found.difference is not None:
        sizes = ", ".join(f"{one.height}×{one.width}{' padded' if one.padded else ''}" for one in found.checked)
        table.add_row("difference", f"{found.difference:.1e} of the largest output, at {sizes}")
    if found.agreement is not None:
        agreed = found.agreement
        table.add_row(
            "agreement", f"{agreed.kind} {agreed.share:.2%} over {agreed.images} images ({escape(agreed.source)})"
        )
    if found.latency is not None:
        t = found.latency
        threads = found.environment.get("threads", "?")
        table.add_row(
            "latency",
            f"{t.file_ms:.1f} ms, {t.ratio:.2f} × eager PyTorch ({t.low:.2f}–{t.high:.2f}), batch {t.batch},"
            f" {t.height}×{t.width}, {threads} thread{'' if threads == '1' else 's'}, {escape(str(found.engine))}",
        )
    return table


def _input(done: Exported) -> str:
    d = done.description
    if d.preprocessing_inside:
        return "one image of any size, uint8"
    sides = [str(side) if side is not None else "any" for side in (d.height, d.width)]
    many = "any number of images" if d.batch is None else f"{d.batch} image{'' if d.batch == 1 else 's'}"
    return f"{many}, {' × '.join(sides)} pixels" if sides != ["any", "any"] else f"{many} of any size"


def _print_remarks(found: Verification) -> None:
    """Say what the verdict rests on, and what is wrong."""
    if found.not_run is not None:
        console.print(f"not run here, so not verified: {escape(found.not_run)}", style="yellow", soft_wrap=True)
    elif found.passed:
        asked = found.limits
        limits = [
            *([f"difference at most {asked.difference:.0e}"] if asked.difference is not None else []),
            *([f"agreement at least {asked.agreement:.1%}"] if asked.agreement is not None else []),
        ]
        output().print(f"passed: {', '.join(limits) or 'finite outputs; random weights are asked for no more'}")
    for problem in found.problems:
        console.print(f"failed: {escape(problem)}", style="red", soft_wrap=True)
    if found.agreement is not None and not found.agreement.answers:
        console.print("neither found an object in these images; name others with --images", style="yellow")
