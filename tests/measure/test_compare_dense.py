"""Backbones under one head: published counts, counts by hand, one peer of all ratios, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from fullfield.cli.compare import run
from fullfield.errors import ConfigError, ModelNotFoundError
from fullfield.measure.compare_dense import compare_dense
from fullfield.measure.compare_result import Budget
from fullfield.measure.dense_comparison import DenseCost

LITTLE = Budget(timing_seconds=0.01, min_rounds=2)
LIGHT = {"fpn_channels": 16, "box_features": 32, "mask_features": 8}


def counted(model: str, task: str, head: str, size: tuple[int, int] = (64, 64), **arguments: object) -> DenseCost:
    found = compare_dense([model], task, head=head, head_arguments=arguments, sizes=[size], timed=False, device="cpu")
    assert not found.not_measured
    return found.models[0].costs[0]


# --- counts ---


@pytest.mark.parametrize(
    ("model", "params", "gmacs"),
    [
        ("convnext_tiny", 60, 939),  # the page of ConvNeXt's authors
        ("swin_tiny_patch4_window7_224", 60, 945),  # that of Swin's
        ("replknet_31b", 112, 1170),  # that of RepLKNet's
    ],
)
def test_upernet_costs_what_the_authors_say(model: str, params: int, gmacs: int) -> None:
    found = counted(model, "segment", "upernet", (512, 2048), channels=512)
    assert found.macs / 1e9 == pytest.approx(gmacs, rel=1.5e-3)
    assert found.params / 1e6 == pytest.approx(params, rel=0.015)
    assert found.backbone_params < found.params
    assert found.backbone_macs < found.macs


def test_mask_rcnn_costs_what_the_authors_of_convnext_say() -> None:
    found = counted("convnext_tiny", "detect", "mask_rcnn", (800, 1280))
    assert (round(found.params / 1e6), round(found.macs / 1e9)) == (48, 262)  # 1000 regions, 100 with masks


@pytest.mark.parametrize(("head", "stages"), [("mask_rcnn", 1), ("cascade_mask_rcnn", 3)])
def test_each_region_of_a_two_stage_head_costs_its_layers(head: str, stages: int) -> None:
    one = counted("racnn_pico", "detect", head, proposals=1, detections=1, **LIGHT)
    more = counted("racnn_pico", "detect", head, proposals=4, detections=1, **LIGHT)
    boxes = 4 * (1 if stages == 3 else 81)
    assert more.macs - one.macs == 3 * stages * (16 * 49 * 32 + 32 * 32 + 32 * (81 + boxes))
    more = counted("racnn_pico", "detect", head, proposals=1, detections=3, **LIGHT)
    convolutions = 196 * 9 * (16 * 8 + 3 * 8 * 8)
    assert more.macs - one.macs == 2 * stages * (convolutions + 196 * 4 * 8 * 8 + 784 * 8 * 81)


def test_one_stage_head_costs_its_convolutions_on_every_map() -> None:
    one = counted("racnn_pico", "detect", "fcos", (128, 128), fpn_channels=16, convs=1)
    two = counted("racnn_pico", "detect", "fcos", (128, 128), fpn_channels=16, convs=2)
    places = sum((128 // stride) ** 2 for stride in (8, 16, 32, 64, 128))
    assert two.macs - one.macs == 2 * places * 9 * 16 * 16
    assert two.backbone_macs == one.backbone_macs


def test_sides_are_rounded_up_as_the_models_pad_them() -> None:
    assert counted("racnn_pico", "segment", "fpn", (40, 50)).macs == counted("racnn_pico", "segment", "fpn").macs


# --- speed, files ---


def test_models_are_timed_at_the_first_size_against_the_first_model(tmp_path: Path) -> None:
    found = compare_dense(
        ["racnn_pico", "convnext_atto"],
        "segment",
        head_arguments={"channels": 16},
        num_classes=3,
        sizes=[(64, 64), (64, 100)],
        budget=LITTLE,
        device="cpu",
    )
    first, second = found.models
    assert first.speed is not None
    assert second.speed is not None
    assert second.speed.ratio is not None
    assert first.speed.ratio is not None
    assert first.speed.ratio.median == 1.0
    assert second.speed.setting.image_size == (64, 64)
    with found.save(tmp_path / "c.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["width"], bool(row["p50_ms"])) for row in rows] == [
        ("racnn_pico", "64", True),
        ("racnn_pico", "100", False),
        ("convnext_atto", "64", True),
        ("convnext_atto", "100", False),
    ]
    assert {(row["task"], row["head"], row["num_classes"]) for row in rows} == {("segment", "upernet", "3")}
    page = found.save(tmp_path / "c.html").read_text(encoding="utf-8")
    assert "Semantic segmentation with upernet, channels 16, 3 classes" in page
    assert "whole, GMACs at 64×100" in page
    assert "http" not in page.replace("http-equiv", "")
    with Image.open(found.plot(tmp_path / "c.png")) as picture:
        assert picture.width > picture.height


def test_command_counts_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["racnn_pico", "--task", "detect", "--head", "retinanet", "--head-args", "fpn_channels=16", "--no-speed"]
    argv += ["--sizes", "64x96", "--out", str(tmp_path / "c.html"), "--json", str(tmp_path / "c.json")]
    assert run([*argv, "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert "detection with retinanet, fpn_channels 16, 80 classes" in out
    assert "GMACs at 64×96" in out
    assert str(tmp_path / "c.csv") in err.replace("\n", "")
    (row,) = json.loads((tmp_path / "c.json").read_text())["models"]
    assert row["macs"] > row["backbone_macs"] > 0
    assert row["p50_ms"] is None
    assert "fullfield compare racnn_pico --task detect" in (tmp_path / "c.html").read_text()


# --- bad input ---


def test_what_is_impossible_is_named() -> None:
    for arguments, says in (
        ({"models": []}, "name at least one model"),
        ({"models": ["racnn_pico", "racnn_pico"]}, "racnn_pico is named twice"),
        ({"task": "segmnt"}, "no task 'segmnt'.*did you mean 'segment'"),
        ({"head": "upernt"}, "no head 'upernt' of the task segment.*did you mean 'upernet'"),
        ({"head_arguments": {"chanels": 8}}, "no argument 'chanels'.*did you mean 'channels'"),
        ({"sizes": []}, "at least one height and width"),
        ({"models": ["vit_tiny_patch16_224"]}, "vit_tiny_patch16_224 has feature maps at strides 16"),
    ):
        given = {"models": ["racnn_pico"], "task": "segment", "timed": False, "device": "cpu", **arguments}
        with pytest.raises(ConfigError, match=says):
            compare_dense(**given)  # type: ignore[arg-type]
    with pytest.raises(ModelNotFoundError, match="did you mean 'racnn_pico'"):
        compare_dense(["racnn_picco"], "segment", timed=False, device="cpu")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--task", "segment", "--data", "x"], "--data means nothing with --task segment; leave it out"),
        (["--task", "detect", "--parts", "cost"], "--parts means nothing with --task detect"),
        (["--head", "upernet"], "--head needs --task segment or --task detect"),
        (["--task", "segment", "--sizes", "512"], "--sizes takes HEIGHTxWIDTH in pixels.* got '512'"),
        (["--task", "segment", "--plot", "c.gif"], r"c.gif must end in \.png"),
    ],
)
def test_options_of_another_task_are_refused(argv: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        run(["racnn_pico", *argv])
