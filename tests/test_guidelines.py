"""docs/guidelines.md says what studies/guidelines/guidelines.csv holds, and the counts in both are the counted ones."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

import fullfield
from fullfield.measure import cost

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "studies" / "guidelines"
PAGE = (ROOT / "docs" / "guidelines.md").read_text(encoding="utf-8")
GUIDELINES = ["G1", "G2", "G3", "G4", "G5"]


def study_tables() -> Any:
    """Import the study's `tables`, which is no package's."""
    spec = importlib.util.spec_from_file_location("guidelines_tables", STUDY / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tables = study_tables()


def test_the_page_is_the_one_that_the_stored_figures_make() -> None:
    assert tables.filled(PAGE) == PAGE


def test_every_guideline_has_figures_its_command_and_says_that_accuracy_is_not_run() -> None:
    assert list(tables.read()) == GUIDELINES
    sections = re.split(r"^## \d\. ", PAGE, flags=re.MULTILINE)[1:]
    assert len(sections) == len(GUIDELINES)
    for name, section in zip(GUIDELINES, sections, strict=True):
        assert f"python studies/guidelines/guidelines.py --only {name}\n" in section
        assert tables.markdown(tables.read()[name]) in section
        assert re.search(r"Accuracy.*(Not run here|no claim of its own)", section, re.DOTALL)


def test_a_changed_figure_or_a_missing_place_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    edited = tmp_path / "guidelines.csv"
    edited.write_text(tables.CSV.read_text(encoding="utf-8").replace("79.53", "79.54"), encoding="utf-8")
    monkeypatch.setattr(tables, "CSV", edited)
    assert tables.filled(PAGE) != PAGE
    with pytest.raises(ValueError, match="0 places for G3"):
        tables.filled(PAGE.replace("<!-- G3 -->", ""))


@pytest.mark.parametrize(
    ("guideline", "setting", "changes"),
    [
        ("G1", "RepLKNet, kernels 3", {"kernel_sizes": 3}),
        ("G1", "RepLKNet, kernels 31, 29, 27, 13", {}),
        ("G5", "3×3 on 7×7", {"kernel_sizes": (31, 29, 27, 3)}),
        ("G5", "7×7 on 7×7", {"kernel_sizes": (31, 29, 27, 7)}),
        ("G5", "13×13 on 7×7", {"kernel_sizes": (31, 29, 27, 13)}),
    ],
)
def test_stored_parameters_and_macs_are_those_of_the_nets(guideline: str, setting: str, changes: Any) -> None:
    figures = tables.read()[guideline][setting]
    merged = cost(fullfield.create_model("replknet_31b", device="meta", **changes).merge_branches(), image_size=224)
    assert figures["parameters (M)"] == f"{merged.params / 1e6:.2f}"
    assert figures["MACs (G)"] == f"{merged.macs / 1e9:.2f}"


@pytest.mark.parametrize("small_kernel", [0, 3, 5])
def test_stored_costs_of_small_kernels_are_those_of_both_forms(small_kernel: int) -> None:
    figures = tables.read()["G3"][f"small kernel {small_kernel or 'none'}"]
    model = fullfield.create_model("replknet_31b", device="meta", small_kernel=small_kernel)
    before, after = cost(model, image_size=224), cost(model.merge_branches(), image_size=224)
    assert [figures["parameters (M)"], figures["merged (M)"]] == [f"{c.params / 1e6:.2f}" for c in (before, after)]
    assert [figures["MACs (G)"], figures["merged (G)"]] == [f"{c.macs / 1e9:.2f}" for c in (before, after)]
    assert float(figures["outputs differ by"]) < 1e-5


def test_what_kernels_reach_on_a_map_of_7_is_what_counting_by_hand_gives() -> None:
    for side, figures in zip((3, 7, 13), tables.read()["G5"].values(), strict=True):
        r = side // 2
        windows = [range(max(0, i - r), min(7, i + r + 1)) for i in range(7)]
        taps = {(min(i, r), min(6 - i, r)) for i in range(7)}  # how far the kernel reaches on either side
        seen = (sum(len(window) for window in windows) / 49) ** 2
        assert figures["of the map seen by one kernel"] == f"{100 * seen:.0f} %"
        assert figures["positions that padding tells apart"] == f"{len(taps) ** 2} of 49"
