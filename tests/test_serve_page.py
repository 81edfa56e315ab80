"""docs/serve.md shows what is stored: its table of load is that of benchmarks/results/serve_load.csv."""

import csv
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
PHASES = ["one by one", "batched", "below the limit", "above the limit", "below it again"]


def stored(name: str = "serve_load.csv") -> list[dict[str, str]]:
    with (RESULTS / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_table_shows_what_was_measured() -> None:
    rows = stored()
    assert [row["phase"] for row in rows] == PHASES
    for row in rows:
        told = re.search(rf"^\| {row['phase']} \|(.*)\|$", PAGE, re.MULTILINE)[1]
        clients, rate, p50, p99, refused, other = (cell.strip().removesuffix(" ms") for cell in told.split("|"))
        assert (clients, refused, other) == (row["clients"], row["status_429"], row["other"])
        assert float(rate) == pytest.approx(float(row["images_per_s"]), abs=0.051)
        assert float(p50) == pytest.approx(float(row["p50_ms"]), abs=0.51)
        assert float(p99) == pytest.approx(float(row["p99_ms"]), abs=0.51)


def test_what_the_text_says_of_batching_and_memory_is_stored() -> None:
    _, batched, held, *_ = stored()
    assert (
        f"Batching gives {batched['ratio']} times the throughput ({batched['ratio_min']} to {batched['ratio_max']}"
        in PAGE
    )
    assert f"{float(held['memory_mb']):.0f} MB, stays within {100 * float(held['memory_spread']):.2f} %" in PAGE
    assert float(held["seconds"]) >= 300
    after_warm_up = [float(row["memory_mb"]) for row in stored("serve_load_memory.csv") if int(row["second"]) >= 20]
    spread = max(after_warm_up) / min(after_warm_up) - 1
    assert spread == pytest.approx(float(held["memory_spread"]), abs=1e-4)


def test_below_the_limit_nothing_was_refused_and_nothing_failed() -> None:
    below = [row for row in stored() if row["phase"] != "above the limit"]
    assert {(row["status_429"], row["other"]) for row in below} == {("0", "0")}
