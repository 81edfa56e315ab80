"""What docs/measure/erf.md tells the user to type works, and its table holds the figures that its code gives."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from fullfield.cli.erf import ErfArguments
from fullfield.cli.parse import parse

PAGE = (Path(__file__).parents[2] / "docs" / "measure" / "erf.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
CONSOLE = "".join(re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ")
COMMANDS = [shlex.split(line[2:], comments=True) for line in CONSOLE.splitlines() if line.startswith("$ fullfield erf")]


def run_block(words: str) -> dict[str, Any]:
    """Run the one block of Python on the page that holds these words, and return its names."""
    (code,) = [block for block in PYTHON if words in block]
    names: dict[str, Any] = {}
    exec(compile(code, "erf.md", "exec"), names)  # noqa: S102
    return names


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_of_the_page_parses(words: list[str]) -> None:
    assert parse(ErfArguments, "erf", words[2:]).models


def test_the_first_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_block('"stages.png"')["result"]
    assert (result.layer, result.image_size, result.count) == ("stages.2", (64, 64), 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["erf.npz", "erf.png", "stages.png"]


@pytest.mark.slow
def test_the_table_of_racnn_holds_what_its_code_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_block("fixed_region_weights(model)")
    (table,) = re.findall(r"\| stage \|.*?\n\|[-|]+\n(.*?)\n\n", PAGE, re.DOTALL)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    for (stage, *shares, theory), whole, held in zip(rows, names["whole"], names["held"], strict=True):
        assert whole.layer == held.layer == f"stages.{stage}"
        assert theory == f"{held.theory.size[0]:.0f} px"
        found = [whole.area_ratio[0.99], held.area_ratio[0.99], whole.coverage, held.coverage]
        # rounding differs between machines, and moves a pixel over the floor here and there
        assert [float(share.rstrip(" %")) for share in shares] == pytest.approx([100 * f for f in found], abs=0.5)
