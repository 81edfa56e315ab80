"""The costs of the models that `fullfield models` lists, counted once and stored, so that the list appears at once.

`python benchmarks/listed_costs.py` counts them again and writes `listed_costs.csv` beside this file; a test holds the
two equal.
"""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files

from fullfield.measure.cost import Cost

__all__ = ["listed_cost"]


def listed_cost(name: str) -> Cost | None:
    """Return the cost of a listed model at its own image size, or None if it is not stored.

    Args:
        name: As `fullfield models` prints it.
    """
    return _stored().get(name)


@cache
def _stored() -> dict[str, Cost]:
    text = files("fullfield.measure").joinpath("listed_costs.csv").read_text(encoding="utf-8")
    return {
        row["model"]: Cost(
            row["model"],
            int(row["params"]),
            int(row["macs"]),
            int(row["flops"]),
            (int(row["channels"]), int(row["height"]), int(row["width"])),
        )
        for row in csv.DictReader(text.splitlines())
    }
