"""studies/export/README.md says what its results.csv holds, and every net exports as docs/export.md promises."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

STUDY = Path(__file__).parents[1] / "studies" / "export"


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = spec_from_file_location("export_study", STUDY / "run.py")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_the_one_that_the_stored_rows_make(study: ModuleType) -> None:
    text = study.PAGE.read_text(encoding="utf-8")
    assert study.filled(text, study.stored()) == text


def test_our_nets_export_to_onnx_and_openvino_without_a_difference_that_counts(study: ModuleType) -> None:
    rows = {(row["model"], row["format"]): row for row in study.stored() if row["precision"] == "fp32"}
    sizes = {f"racnn_{name}" for name in ("pico", "nano", "tiny", "small", "base")}
    for model in sizes | {"replknet_31b", "unireplknet_t", "moganet_small", "slak_tiny"}:
        for to in study.FORMATS:
            row = rows[model, to]
            assert row["status"] == "passed", row
            assert float(row["difference"]) < 1e-4, row
            assert (float(row["agreement"]), row["images"]) == (1, "200"), row


def test_a_trained_run_keeps_its_answers_in_int8(study: ModuleType) -> None:
    rows = [row for row in study.stored() if row["precision"] == "int8" and row["model"] == "runs/blood_cells"]
    assert {(row["format"], row["trained"], row["images"]) for row in rows} == {
        (to, "True", "200") for to in study.FORMATS
    }
    for row in rows:
        assert float(row["agreement"]) >= 0.99, row
