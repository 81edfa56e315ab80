"""docs/export.md and README.md show what is stored: their speeds are those of benchmarks/results/deploy_cpu.csv."""

import csv
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
NETS = ("racnn_pico", "racnn_tiny", "convnext_tiny", "resnet50")


def stored() -> dict[tuple[str, str], dict[str, str]]:
    with (ROOT / "benchmarks" / "results" / "deploy_cpu.csv").open(newline="", encoding="utf-8") as file:
        return {(row["form"], row["model"]): row for row in csv.DictReader(file)}


def cells_of_the_page() -> dict[tuple[str, str], str]:
    lines = re.findall(r"^\| ((?:eager|compile|onnxruntime|openvino)[\w ]*) \|(.*)\|$", PAGE, re.MULTILINE)
    return {
        (form, net): cell.strip()
        for form, line in lines
        for net, cell in zip(NETS, line.split("|"), strict=True)
        if cell.strip() != "–"
    }


def test_the_table_shows_what_was_measured() -> None:
    rows = stored()
    told = cells_of_the_page()
    assert {net for _, net in told} == set(NETS) == {net for _, net in rows}
    for key, cell in told.items():
        milliseconds, ratio = re.fullmatch(r"(\d+) ms, (\d+\.\d\d) ×", cell).groups()
        assert float(milliseconds) == pytest.approx(float(rows[key]["p50_ms"]), abs=0.51), key
        assert float(ratio) == pytest.approx(float(rows[key]["ratio_to_eager"]), abs=0.0051), key


def test_the_readme_names_the_same_speeds() -> None:
    lead = (ROOT / "README.md").read_text(encoding="utf-8").partition("OpenVINO runs `racnn_tiny`")[2]
    told = [float(ratio) for ratio in re.findall(r"(\d\.\d\d) ×", lead.partition("(")[0])]
    rows = stored()
    forms = ("openvino", "openvino int8", "onnxruntime")
    assert told == pytest.approx([float(rows[form, "racnn_tiny"]["ratio_to_eager"]) for form in forms], abs=0.0051)


def test_files_in_float32_were_right_when_they_were_timed() -> None:
    differences = [
        float(row["difference"]) for (form, _), row in stored().items() if row["engine"] and "int8" not in form
    ]
    assert len(differences) == 4 * len(NETS)
    assert max(differences) < 1e-4
