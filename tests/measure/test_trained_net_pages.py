"""The tables of docs/measure/ about a trained net hold the figures of studies/efficientnet_lite0/figures.csv."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
with (ROOT / "studies" / "efficientnet_lite0" / "figures.csv").open(newline="", encoding="utf-8") as file:
    ROWS = list(csv.DictReader(file))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['page']}: {row['row']}")
def test_a_row_of_the_page_is_the_stored_one(row: dict[str, str]) -> None:
    lines = (ROOT / "docs" / "measure" / f"{row['page']}.md").read_text(encoding="utf-8").splitlines()
    assert f"| {row['row']} | {row['figures']} |" in lines


def test_all_three_pages_have_figures() -> None:
    assert {row["page"] for row in ROWS} == {"erf", "cam", "shift"}
