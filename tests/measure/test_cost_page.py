"""docs/measure/cost.md says what the count says, its commands parse and its Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from fullfield.cli.bench import BenchArguments
from fullfield.cli.parse import parse
from fullfield.measure import roofline
from fullfield.measure.cost_report import cost_report
from fullfield.measure.cost_training import training_memory

PAGE = (Path(__file__).parents[2] / "docs" / "measure" / "cost.md").read_text(encoding="utf-8")
COUNTS = re.findall(r"^\| `(\w+)` \| (\d+\.\d\d \|.*) \|$", PAGE, re.MULTILINE)
QUICK = ("resnet50", "racnn_tiny")
COMMANDS = re.findall(r"^\$ fullfield (\w+) (.*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "told"),
    [pytest.param(*row, id=row[0], marks=[] if row[0] in QUICK else pytest.mark.slow) for row in COUNTS],
)
def test_the_table_holds_the_counts(name: str, told: str) -> None:
    report = cost_report(name)
    whole = report.total
    activations = training_memory(name, batch=8).activation_bytes / 8
    assert [cell.strip() for cell in told.split("|")] == [
        f"{report.cost.params / 1e6:.2f}",
        f"{report.cost.macs / 1e9:.3f}",
        f"{report.missed_by_hooks:.1%}",
        f"{report.dynamic_share:.1%}",
        f"{whole.softmax_elements / 1e6:.2f}",
        f"{(whole.weight_bytes + whole.map_bytes) / 2**20:.0f}",
        f"{whole.intensity:.1f}",
        f"{activations / 2**20:.0f}",
    ]


def test_the_page_has_a_table_and_its_commands_parse() -> None:
    assert len(COUNTS) > 5
    assert {command for command, _ in COMMANDS} == {"bench"}
    for command, words in COMMANDS:
        parse(BenchArguments, command, shlex.split(words, comments=True))


@pytest.mark.slow
def test_the_python_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(roofline, "TRIAD_BYTES", 2**22)
    monkeypatch.setattr(roofline, "LONG_ENOUGH_S", 1e-3)
    roofline._measure.cache_clear()
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(code, "cost.md", "exec"), names)  # noqa: S102
    roofline._measure.cache_clear()
    assert (tmp_path / "cost.csv").exists()
