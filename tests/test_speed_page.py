"""docs/speed.md shows what is stored: its table is that of benchmarks/results/backbones_cpu.csv."""

import csv
import re
from pathlib import Path

import pytest

import fullfield

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
LARGE = 100e6  # parameters; see benchmarks/backbones_cpu.py


def stored() -> list[dict[str, str]]:
    with (ROOT / "benchmarks" / "results" / "backbones_cpu.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rows_of_the_page() -> dict[str, list[str]]:
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", PAGE, re.MULTILINE)
    return {name: [cell.strip().removesuffix(" ×") for cell in cells.split("|")] for name, cells in rows}


def test_every_net_of_ours_is_in_the_file_and_on_the_page() -> None:
    ours = {
        info.name for info in fullfield.list_models() if info.source == "fullfield" and not info.name.endswith("_384")
    }
    assert {row["model"] for row in stored()} == ours == set(rows_of_the_page())


def test_both_layouts_fused_and_not_were_timed_beside_the_official_form() -> None:
    forms = {"official", "nchw", "channels_last", "nchw fused", "channels_last fused"}
    for name in rows_of_the_page():
        of_net = [row for row in stored() if row["model"] == name]
        groups = {(row["mode"], row["batch"]) for row in of_net}
        for mode, batch in groups:
            timed = {row["form"] for row in of_net if (row["mode"], row["batch"]) == (mode, batch)}
            assert timed == (forms if mode == "forward" else {"official", "nchw", "channels_last"}), name
        large = float(of_net[0]["params"]) > LARGE
        assert {batch for mode, batch in groups if mode == "forward"} == ({"1"} if large else {"1", "8"}), name
        assert ("train" in {mode for mode, _ in groups}) is not large, name


@pytest.mark.parametrize("name", list(rows_of_the_page()))
def test_figures_are_those_of_the_fastest_form(name: str) -> None:
    fastest = {(r["mode"], r["batch"]): r for r in stored() if r["model"] == name and r["fastest"] == "True"}
    one, eight = fastest["forward", "1"], fastest.get(("forward", "8"))
    train = next((row for (mode, _), row in fastest.items() if mode == "train"), None)
    expected = [
        one["images_per_s"],
        eight and eight["images_per_s"],
        eight and eight["peak_memory_mb"],
        (eight or one)["ratio_to_official"],
        train and train["ratio_to_official"],
    ]
    for told, measured in zip(rows_of_the_page()[name], expected, strict=True):
        if measured is None:
            assert told == "–"
        else:
            assert float(told) == pytest.approx(float(measured), abs=0.0051)
