"""Accuracies are given with a source or read from a run that was evaluated on the data; none is made up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fullfield.errors import ConfigError, RunError
from fullfield.measure.compare_accuracy import Accuracy, accuracy_of_run, check_given, run_accuracy
from tests.images import finished, photos

__all__ = ["finished", "photos"]


def test_a_given_figure_becomes_a_share_with_its_source() -> None:
    assert check_given({"a": 82.9}, " Table 4 ", ["a", "b"]) == {"a": Accuracy(82.9 / 100, "Table 4")}
    assert check_given({}, "", ["a"]) == {}


@pytest.mark.parametrize(
    ("given", "source", "says"),
    [
        ({"a": 80.0}, "", "accuracies without a source"),
        ({"a": 80.0}, "  ", "--accuracy-source"),
        ({"racnn_tinny": 80.0}, "x", "which is not compared; did you mean 'racnn_tiny'"),
        ({"a": 0.82}, "x", "must be in percent"),
        ({"a": 101.0}, "x", "at most 100, got 101"),
        ({"a": float("nan")}, "x", "must be in percent"),
    ],
)
def test_what_can_t_be_checked_is_refused(given: dict[str, float], source: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_given(given, source, ["a", "racnn_tiny"])


def test_a_run_brings_what_it_measured_on_held_out_images(finished: Path, photos: Path) -> None:
    stored = json.loads((finished / "evaluation" / "evaluation.json").read_text())
    for data in (None, photos):
        found = run_accuracy(finished, data)
        assert found is not None
        assert found.top1 == stored["top1"]
        assert found.source == f"this run on {stored['images']:.0f} images of the {stored['split']} split of {photos}"


def test_a_run_on_other_data_has_no_accuracy_here(finished: Path) -> None:
    with pytest.raises(ConfigError, match=r"the run was evaluated on .*photos, not on sample:blood_cells"):
        run_accuracy(finished, "sample:blood_cells")
    found, reason = accuracy_of_run(finished, "sample:blood_cells")
    assert found is None
    assert "not on sample:blood_cells" in reason


def test_a_name_has_none() -> None:
    assert run_accuracy("resnet50", None) is None
    found, reason = accuracy_of_run("resnet50", None)
    assert found is None
    assert reason == "no figure was given, and it is not a run with an evaluation"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "evaluate it with `fullfield eval"),
        ("{", "can't be read"),
        ('{"top1": null, "split": "val", "images": 3}', "can't be read"),
        ('{"top1": 82.0, "split": "val", "images": 3}', "not between 0 and 1"),
        ('{"top1": 0.9, "split": "train", "images": 3}', "which the run was trained on"),
        ('{"top1": 0.9, "split": "all", "images": 3}', "evaluate it on held-out images"),
    ],
    ids=str,
)
def test_a_damaged_or_unfit_evaluation_is_named(finished: Path, tmp_path: Path, content: str | None, says: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    file = run / "evaluation" / "evaluation.json"
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    with pytest.raises(RunError, match=says):
        run_accuracy(run, None)
