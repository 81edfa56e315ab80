"""The study's CSV, and the tables of docs/guidelines.md made from it, so that the page can say nothing else.

`python studies/guidelines/tables.py` fills the page from the stored CSV again.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path

CSV = Path(__file__).parent / "guidelines.csv"
PAGE = Path(__file__).parents[2] / "docs" / "guidelines.md"

Table = dict[str, dict[str, str]]
"""What was measured -> quantity with its unit -> figure, as the page shows it."""


def markdown(table: Table) -> str:
    """Return a table of one row a setting; what was not measured for it is left blank."""
    quantities = dict.fromkeys(quantity for figures in table.values() for quantity in figures)
    lines = [["", *quantities], ["---"] * (len(quantities) + 1)]
    lines += [[setting, *(figures.get(quantity, "") for quantity in quantities)] for setting, figures in table.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(found: Mapping[str, Table], environment: Mapping[str, str]) -> None:
    """Write all figures, one a row, with the environment."""
    with CSV.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["guideline", "setting", "quantity", "value", *environment])
        for guideline, table in found.items():
            for setting, figures in table.items():
                writer.writerows([guideline, setting, *figure, *environment.values()] for figure in figures.items())


def read() -> dict[str, Table]:
    """Return the stored figures by guideline."""
    found: dict[str, Table] = {}
    with CSV.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            table = found.setdefault(row["guideline"], {})
            table.setdefault(row["setting"], {})[row["quantity"]] = row["value"]
    return found


def where() -> str:
    """Return the stored environment as a sentence."""
    with CSV.open(newline="", encoding="utf-8") as file:
        row = next(csv.DictReader(file))
    return f"Measured on {row['device']}, threads: {row['threads']}, torch {row['torch']}, {row['date']}."


def filled(page: str) -> str:
    """Return the page with what stands between `<!-- G1 -->` and `<!-- end -->`, and so on, made from the CSV.

    Raises:
        ValueError: A guideline has no place on the page, or several.
    """
    blocks = {"environment": where()} | {guideline: markdown(table) for guideline, table in read().items()}
    for name, block in blocks.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if len(place.findall(page)) != 1:
            raise ValueError(f"{PAGE.name} has {len(place.findall(page))} places for {name}; it needs one")
        page = place.sub(lambda found, block=block: f"{found[1]}\n{block}\n\n{found[2]}", page)
    return page


def fill() -> None:
    """Write the stored figures into the page."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE.name} has the figures of {CSV.name}")


if __name__ == "__main__":
    fill()
