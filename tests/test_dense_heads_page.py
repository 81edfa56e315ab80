"""The page of the study of dense heads says what its table holds, and every run has learned."""

from __future__ import annotations

import csv
import runpy
from pathlib import Path

STUDY = Path(__file__).parents[1] / "studies" / "dense_heads"


def rows() -> list[dict[str, str]]:
    with (STUDY / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_page_is_made_of_the_table() -> None:
    assert runpy.run_path(str(STUDY / "page.py"))["page"]() == (STUDY / "README.md").read_text(encoding="utf-8")


def test_every_head_and_form_of_annotation_has_a_run() -> None:
    heads = {"fcos", "retinanet", "faster_rcnn", "cascade_rcnn", "mask_rcnn", "cascade_mask_rcnn"}
    assert {row["head"] for row in rows()} == heads | {"upernet", "fpn", "unet", "segformer"}
    assert {row["data"] for row in rows()} == {"bccd_coco", "voc", "yolo", "nuclei", "camvid11"}


def test_every_run_is_better_at_its_best_than_after_its_first_epoch() -> None:
    for row in rows():
        assert float(row["best"]) > float(row["first"]), row["run"]


def test_the_long_run_on_blood_cells_finds_most_cells_within_twenty_minutes_on_two_cores() -> None:
    (row,) = [row for row in rows() if row["run"] == "cells-fcos-long"]
    assert float(row["held_out_figure"]) > 0.6
    assert float(row["cpu_minutes"]) < 40  # 20 minutes on two cores


def test_streets_rise_above_the_most_frequent_class() -> None:
    for row in rows():
        if row["majority_miou"]:
            assert float(row["held_out_figure"]) > 2 * float(row["majority_miou"]), row["run"]
