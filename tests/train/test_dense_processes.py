"""Detectors and segmenters trained by two processes on CPUs, and what of that equals one process.

The gradient of two processes is the mean of theirs, weighed by images. It is that of one process where the loss is a
mean over images: with RetinaNet, and in segmentation where every image has as many labelled pixels. FCOS divides by the
places with an object of all images of a process, and the R-CNNs draw regions at random in each process: these train
as well, to other weights, as they do in torchvision and Detectron2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fullfield
from fullfield.tasks.run_folder import RunFolder
from tests.images import read_rows
from tests.train.dense_data import HEADS, boxes, maps, write_boxes, write_maps

pytest.importorskip("faster_coco_eval", reason="needs fullfield[detect]")
pytest.importorskip("segmentation_models_pytorch", reason="needs fullfield[segment]")

__all__ = ["boxes", "maps"]

CHECKED: dict[str, Any] = {"precision": "64", "lr": 1e-4, "photometric": 0.0}
"""In float64, and at a rate at which rounding errors do not grow."""
SEGMENTER = HEADS["upernet"] | CHECKED | {"head_args": ("channels=16", "auxiliary_channels=8", "dropout=0.0")}
"""Without dropout, which each process draws for itself."""


def values(run: Path, column: str) -> list[float]:
    return [float(row[column]) for row in read_rows(run / "metrics.csv")]


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(RunFolder(run).states[0], weights_only=True)["state_dict"]
    return state


def one_and_two(data: Path, folder: Path, **options: Any) -> tuple[Path, Path]:
    """Train the same in one process and in two; return both runs."""
    one, two = (fullfield.train(data, out=folder / str(n), devices=n, **options).run for n in (1, 2))
    return one, two


def assert_equal(one: Path, two: Path, score: str) -> None:
    assert values(two, "train_loss") == pytest.approx(values(one, "train_loss"), rel=1e-9)
    assert values(two, score) == pytest.approx(values(one, score), rel=1e-9)
    theirs = last_weights(one)
    for name, tensor in last_weights(two).items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.slow
def test_two_processes_give_the_segmenter_of_one(maps: Path, tmp_path: Path) -> None:
    one, two = one_and_two(maps, tmp_path, **SEGMENTER)
    assert_equal(one, two, "val_miou")
    assert values(two, "val_loss") == pytest.approx(values(one, "val_loss"), rel=1e-6)


@pytest.mark.slow
def test_two_processes_give_the_retinanet_of_one(boxes: Path, tmp_path: Path) -> None:
    one, two = one_and_two(boxes, tmp_path, **HEADS["retinanet"] | CHECKED)
    assert_equal(one, two, "val_ap")


@pytest.mark.slow
def test_without_sync_bn_two_processes_differ_from_one(maps: Path, tmp_path: Path) -> None:
    one, two = one_and_two(maps, tmp_path, **SEGMENTER, sync_bn=False)
    assert values(two, "train_loss") != pytest.approx(values(one, "train_loss"), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["fcos", "faster_rcnn", "mask_rcnn"])
def test_losses_that_are_no_mean_over_images_come_near(boxes: Path, tmp_path: Path, head: str) -> None:
    """In the first epoch, while weights are almost alike: 0.01, 0.005 and 0.03 % apart when this was written."""
    one, two = one_and_two(boxes, tmp_path, **HEADS[head] | CHECKED)
    assert values(two, "train_loss")[0] == pytest.approx(values(one, "train_loss")[0], rel=0.01)
    assert values(two, "train_loss") != values(one, "train_loss")


@pytest.mark.slow
@pytest.mark.parametrize("head", ["fcos", "mask_rcnn"])
def test_pictures_without_objects_may_be_all_that_a_process_has(tmp_path: Path, head: str) -> None:
    data = write_boxes(tmp_path / "data", empty=(0, 2, 3, 5, 6, 7))
    run = fullfield.train(data, out=tmp_path / "run", devices=2, **HEADS[head] | {"batch_size": 2}).run
    assert values(run, "train_loss")[-1] < values(run, "train_loss")[0]


@pytest.mark.slow
@pytest.mark.parametrize("head", ["fcos", "mask_rcnn", "upernet"])
def test_process_whose_pictures_are_all_unreadable_keeps_pace(tmp_path: Path, head: str) -> None:
    """Also where BatchNorm is over both processes: the other one would wait for ever."""
    data = (write_maps if head == "upernet" else write_boxes)(tmp_path / "data")
    bad = sorted(data.rglob("images/00[025].png"))
    assert len(bad) == 3
    for path in bad:
        path.write_bytes(b"")
    options = HEADS[head] | {"batch_size": 2, "max_bad": "50%"}
    run = fullfield.train(data, out=tmp_path / "run", devices=2, **options).run
    assert sorted(row["path"] for row in read_rows(run / "unreadable.csv")) == [str(path) for path in bad]
    assert len(values(run, "train_loss")) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("head", "score"), [("retinanet", "ap"), ("upernet", "miou")])
def test_figures_over_processes_are_exact_where_images_do_not_divide(tmp_path: Path, head: str, score: str) -> None:
    data = (write_maps if head == "upernet" else write_boxes)(tmp_path / "data", val=5)
    result = fullfield.train(data, out=tmp_path / "run", devices=2, **HEADS[head] | {"epochs": 1})
    (trained,) = values(result.run, f"val_{score}")
    assert result.evaluation.result.images == 5
    assert 0 < trained == pytest.approx(result.evaluation.result.score, rel=1e-6)  # of one process, on those weights


@pytest.mark.slow
def test_two_processes_train_in_bfloat16(boxes: Path, maps: Path, tmp_path: Path) -> None:
    for head, data in (("mask_rcnn", boxes), ("upernet", maps)):
        run = fullfield.train(data, out=tmp_path / head, devices=2, precision="bf16", **HEADS[head]).run
        assert values(run, "train_loss")[-1] < values(run, "train_loss")[0]
