"""`fullfield models [PATTERN]`: what there is, with costs that are stored with the package or counted on the spot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import timm
import tyro
from rich.table import Table

from fullfield.cli.parse import parse
from fullfield.files import write_json
from fullfield.measure import cost
from fullfield.measure.listed_costs import listed_cost
from fullfield.models.registry import ModelInfo, list_models
from fullfield.progress import console, output

__all__ = ["ModelsArguments", "run"]

COUNTED_UNASKED = 40  # building hundreds of models takes minutes


@dataclass(frozen=True)
class ModelsArguments:
    """List models: Fullfield's own beside the nets of timm's they are compared with, or all that match a pattern."""

    pattern: tyro.conf.Positional[str] = ""
    """Such as 'racnn*' or '*' (quote it, or the shell expands it). Without one: Fullfield's own and their peers."""
    cost: bool | None = None
    """Count parameters and MACs. By default where they are known or at most 40 models are to be counted."""
    image_size: int | None = None
    """Count MACs at this size, pixels. By default each model's own."""
    json: str | None = None
    """Write the table to this file too."""


def run(argv: list[str]) -> int:
    """List models, with parameters and MACs."""
    arguments = parse(ModelsArguments, "models", argv)
    infos = list_models(arguments.pattern)
    unknown = [info for info in infos if arguments.image_size is not None or listed_cost(info.name) is None]
    count = arguments.cost if arguments.cost is not None else len(unknown) <= COUNTED_UNASKED
    rows = []
    with console.status("counting") as status:
        for info in infos:
            status.update(f"counting {info.name}")
            rows.append(_row(info, count, arguments.image_size))
    _print(rows, count)
    if not arguments.pattern:
        console.print(f"and {len(timm.list_models()) - len(infos):,} of timm's: fullfield models '*'", style="dim")
    if arguments.json:
        write_json(arguments.json, rows)
    return 0


def _row(info: ModelInfo, count: bool, image_size: int | None) -> dict[str, Any]:
    row: dict[str, Any] = {"model": info.name, "source": info.source, "family": info.family}
    pretrained = timm.models.is_model_pretrained(info.name)
    row["weights"] = "timm" if pretrained else "none"
    if count:
        try:
            stored = listed_cost(info.name) if image_size is None else None
            counted = stored or cost(info.name, image_size=image_size)
        except (RuntimeError, AssertionError, TypeError, ValueError) as error:
            row["error"] = str(error).splitlines()[0] if str(error) else type(error).__name__
        else:
            row |= {"params": counted.params, "macs": counted.macs, "flops": counted.flops}
            row["input_size"] = list(counted.input_size)
    return row


def _print(rows: list[dict[str, Any]], count: bool) -> None:
    table = Table(box=None, header_style="bold")
    table.add_column("model", no_wrap=True)
    for name in ("params (M)", "MACs (G)", "FLOPs (G)", "at") if count else ():
        table.add_column(name, justify="right")
    for name in ("source", "family", "weights"):
        table.add_column(name)
    for row in rows:
        cells = [row["model"]]
        if count and "params" in row:
            size = "×".join(map(str, row["input_size"][1:]))
            cells += [f"{row['params'] / 1e6:.2f}", f"{row['macs'] / 1e9:.3f}", f"{row['flops'] / 1e9:.3f}", size]
        elif count:
            cells += ["–"] * 4
        table.add_row(*cells, row["source"], row["family"], row["weights"])
    output().print(table)
