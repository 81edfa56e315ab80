"""`fullfield convert IN OUT`: a Fullfield file of an official checkpoint, a timm one or a plain state dict."""

from __future__ import annotations

from dataclasses import dataclass

from rich.markup import escape

from fullfield.cli.parse import parse
from fullfield.progress import console, output
from fullfield.tasks.convert import convert

__all__ = ["ConvertArguments", "run"]


@dataclass(frozen=True)
class ConvertArguments:
    """Make a Fullfield file of anyone's checkpoint, which predict, eval and train --weights then take."""

    source: str
    """The checkpoint: .pth, .pt, .bin, .ckpt or .safetensors. Nothing in it is executed."""
    target: str
    """The file to make, ending in .safetensors."""
    model: str | None = None
    """Registered name. By default found from the names and shapes in the file (Fullfield's models only)."""
    which: str | None = None
    """Which weights, if the file has several, such as model_ema. By default the model's own."""
    fuse: bool = False
    """Fold all norms: faster, and for inference only."""
    image_size: int | None = None
    """Pixels at which the weights were trained. By default the model's own resolution."""
    overwrite: bool = False
    """Replace the target if it exists."""


def run(argv: list[str]) -> int:
    """Convert, check, and print what was found and made."""
    arguments = parse(ConvertArguments, "convert", argv)
    done = convert(
        arguments.source,
        arguments.target,
        model=arguments.model,
        which=arguments.which,
        fuse=arguments.fuse,
        image_size=arguments.image_size,
        overwrite=arguments.overwrite,
    )
    screen = output()
    screen.print(escape(str(done.report)), soft_wrap=True)
    if done.report.classifier == "fresh":
        console.print(
            "the file has no classifier, and none was written: train one with `fullfield train DATA --weights"
            f" {escape(str(done.path))} --reset-classifier`",
            style="yellow",
            soft_wrap=True,
        )
    same = "the same outputs" if not done.difference else f"outputs within {done.difference:.0e}"
    screen.print(
        f"written to {escape(str(done.path))}: {done.parameters / 1e6:.2f} M parameters; loaded back, {same}",
        soft_wrap=True,
    )
    return 0
