"""docs/data.md shows what is stored: its table of speed is that of benchmarks/results/loader_cpu.csv."""

import csv
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
SOURCES = ("folder", "tar shards", "Parquet", "decoded in memory")


def stored() -> dict[tuple[str, str, str], dict[str, str]]:
    with (ROOT / "benchmarks" / "results" / "loader_cpu.csv").open(newline="", encoding="utf-8") as file:
        return {(row["mode"], row["workers"], row["source"]): row for row in csv.DictReader(file)}


def test_every_row_is_on_the_page() -> None:
    told = re.findall(r"^\| ([\w ]+), (\d) workers \|(.*)\|$", PAGE, re.MULTILINE)
    cells = {
        (mode, workers, source): cell
        for mode, workers, line in told
        for source, cell in zip(SOURCES, line.split("|"), strict=True)
    }
    rows = stored()
    assert cells.keys() == rows.keys()
    for key, cell in cells.items():
        rate, ratio = re.fullmatch(r" (\d+) \((\d\.\d\d) ×\) ", cell).groups()
        assert float(rate) == pytest.approx(float(rows[key]["images_per_s"]), abs=0.51)
        assert float(ratio) == pytest.approx(float(rows[key]["of_folder"]), abs=0.0051)


def test_the_share_of_loading_in_a_step_is_what_the_rows_give() -> None:
    loader, step, share = re.search(
        r"takes (\S+) ms an image and a training step (\S+) ms: reading, decoding and augmenting are\n(\S+) %", PAGE
    ).groups()
    rows = stored()
    of_loader, of_step = (float(rows[mode, "0", "folder"]["images_per_s"]) for mode in ("loader", "training step"))
    assert float(loader) == pytest.approx(1e3 / of_loader, abs=0.051)
    assert float(step) == pytest.approx(1e3 / of_step, abs=0.051)
    assert float(share) == pytest.approx(100 * of_step / of_loader, abs=0.051)
