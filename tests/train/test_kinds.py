"""What each kind of task tells the trainer: its name, what it fits, what it refuses, and what tells samples apart."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fullfield.errors import ConfigError, DataError
from fullfield.tasks.detection.heads import HEADS as DETECTION_HEADS
from fullfield.tasks.segmentation.heads import HEADS as SEGMENTATION_HEADS
from fullfield.train.freeze import freeze
from fullfield.train.kinds import kind_of
from fullfield.train.kinds.find import find_task
from fullfield.train.settings import TrainSettings
from tests.images import write_photos
from tests.train.dense_data import HEADS, boxes, maps, write_boxes, write_voc, write_yolo

pytest.importorskip("faster_coco_eval", reason="needs fullfield[detect]")
pytest.importorskip("segmentation_models_pytorch", reason="needs fullfield[segment]")

__all__ = ["boxes", "maps"]

CPU = torch.device("cpu")


def settings_of(data: Path, **options: Any) -> TrainSettings:
    return TrainSettings(str(data), **options)


def begin(task: str, data: Path, **options: Any) -> Any:
    """Return kind, settings, data and start of a run."""
    kind = kind_of(task)
    settings = settings_of(data, **options)
    read = kind.read(settings)
    settings, _ = kind.fit(settings, read, CPU)
    return kind, settings, read, kind.start(settings, read)


def test_kind_is_found_by_name_and_the_nearest_is_named() -> None:
    for name in ("classify", "detect", "segment"):
        kind = kind_of(name)
        assert kind.name == name
        assert f"val_{kind.score}" in kind.columns
    with pytest.raises(ConfigError, match="'detekt'; did you mean 'detect'"):
        kind_of("detekt")


def test_score_is_the_task_s_own(boxes: Path, maps: Path) -> None:
    for name, data, head in (("detect", boxes, "fcos"), ("segment", maps, "upernet")):
        kind, settings, read, start = begin(name, data, **HEADS[head])
        assert kind.task(settings, read, start).score_name == kind.score


def test_task_is_found_by_the_form_of_the_data(boxes: Path, maps: Path, tmp_path: Path) -> None:
    assert find_task(settings_of(boxes)) == "detect"
    assert find_task(settings_of(boxes / "annotations" / "instances_train.json")) == "detect"
    assert find_task(settings_of(write_voc(tmp_path / "voc"))) == "detect"
    assert find_task(settings_of(write_yolo(tmp_path / "yolo"))) == "detect"
    assert find_task(settings_of(tmp_path / "yolo" / "data.yaml")) == "detect"
    assert find_task(settings_of(maps)) == "segment"
    assert find_task(settings_of(write_photos(tmp_path / "photos", each=2))) == "classify"
    assert find_task(TrainSettings("sample:blood_cells")) == "classify"
    assert find_task(settings_of(tmp_path / "nowhere")) == "classify"  # whose reader says that it is not there
    with pytest.raises(DataError, match="blood_cell"):
        find_task(TrainSettings("sample:blood_cell"))


@pytest.mark.parametrize("head", sorted(DETECTION_HEADS))
def test_every_detector_is_built_from_what_is_fitted(boxes: Path, head: str) -> None:
    _, settings, _, start = begin("detect", boxes, head=head, **SMALL)
    assert (settings.head_args, settings.image_size, settings.long_side) == (("fpn_channels=64",), 64, 107)
    assert start.model.head_name == head


@pytest.mark.parametrize("head", sorted(SEGMENTATION_HEADS))
def test_every_segmenter_is_built_from_what_is_fitted(maps: Path, head: str) -> None:
    """Semantic FPN takes no width below 128."""
    _, settings, _, start = begin("segment", maps, head=head, **SMALL)
    assert settings.head_args == ("channels=128" if head == "fpn" else "channels=64",)
    assert start.model.head_name == head


SMALL: dict[str, Any] = {"model": "racnn_pico", "model_args": ("dims=[8,16,24,32]", "depths=[1,1,1,1]")}


def test_what_is_given_is_not_fitted_and_each_fitted_value_has_its_reason(boxes: Path) -> None:
    kind = kind_of("detect")
    given = settings_of(boxes, head="retinanet", image_size=96, lr=0.5, epochs=3, head_args=("convs=1",))
    settings, notes = kind.fit(given, kind.read(given), CPU)
    fitted = {"model": "racnn_pico", "model_args": ("layer_scale=0.1",), "long_side": 160, "batch_size": 4}
    assert settings == replace(given, **fitted, workers=settings.workers)
    assert sorted(re.split(r" [\d(r]", note)[0] for note in notes) == [
        "batch size",
        "long side",
        "model",
        "model args",
        "workers",
    ]


def test_rate_grows_with_the_root_of_the_batch_and_is_a_quarter_from_weights(maps: Path) -> None:
    kind = kind_of("segment")
    rates = []
    for options in ({"batch_size": 16}, {"batch_size": 64}, {"batch_size": 16, "pretrained": True}):
        given = settings_of(maps, **options)
        rates.append(kind.fit(given, kind.read(given), CPU)[0].lr)
    assert rates == [pytest.approx(1e-3), pytest.approx(2e-3), pytest.approx(2.5e-4)]


def test_outlines_choose_mask_rcnn_on_a_gpu_alone(boxes: Path, tmp_path: Path) -> None:
    kind = kind_of("detect")
    heads = {}
    for data in (boxes, write_voc(tmp_path / "voc")):
        for device in ("cpu", "cuda"):
            given = settings_of(data)
            heads[data.name, device] = kind.fit(given, kind.read(given), torch.device(device))[0].head
    assert heads == {
        ("boxes", "cpu"): "fcos",
        ("boxes", "cuda"): "mask_rcnn",
        ("voc", "cpu"): "fcos",
        ("voc", "cuda"): "fcos",
    }


def test_samples_are_told_apart_by_every_annotation(boxes: Path) -> None:
    kind = kind_of("detect")
    sample: Any = kind.read(settings_of(boxes)).splits["train"][0]
    objects = sample.objects
    same = replace(sample, path=Path("elsewhere") / sample.path.name)
    assert kind.fingerprint(same) == kind.fingerprint(sample)
    for change in (
        {"labels": objects.labels[::-1]},
        {"boxes": objects.boxes + np.float32(1)},
        {"crowd": ~objects.crowd},
        {"areas": objects.areas - np.float32(5)},
    ):
        other = replace(sample, objects=replace(objects, **change))
        assert kind.fingerprint(other) != kind.fingerprint(sample), change


def test_freezing_counts_the_whole_model_and_leaves_pyramid_and_head(boxes: Path) -> None:
    kind, _, _, start = begin("detect", boxes, **HEADS["fcos"])
    frozen = kind.freeze(start.model, ("backbone",))
    inside = sum(p.numel() for p in start.model.backbone.parameters())
    assert frozen.frozen == inside
    assert sum(frozen) == sum(p.numel() for p in start.model.parameters())
    assert all(p.requires_grad for part in (start.model.pyramid, start.model.head) for p in part.parameters())
    start.model.train()
    start.model.backbone(torch.rand(2, 3, 64, 64))
    assert not any(m.training for m in start.model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_unknown_part_to_freeze_is_named_beside_a_known_one(boxes: Path) -> None:
    kind, _, _, start = begin("detect", boxes, **HEADS["fcos"])
    with pytest.raises(ConfigError, match=r"'stagez'.*'stages'"):
        kind.freeze(start.model, ("backbone", "stagez"))


def test_freezing_parts_of_a_net_is_freezing_them_in_a_classifier(boxes: Path) -> None:
    kind, _, _, start = begin("detect", boxes, **HEADS["fcos"])
    _, _, _, other = begin("detect", boxes, **HEADS["fcos"])
    kind.freeze(start.model, ("stem", "stages.0-1"))
    freeze(other.model.backbone.model, ("stem", "stages.0-1"))
    ours, theirs = ([p.requires_grad for p in model.parameters()] for model in (start.model, other.model))
    assert ours == theirs
    assert not all(ours)


@pytest.mark.parametrize(("net", "told"), [("resnet18", False), ("pvt_v2_b0", True)])
def test_a_net_that_lets_the_padding_of_a_batch_in_is_named_at_the_start(
    tmp_path: Path, net: str, *, told: bool
) -> None:
    settings = TrainSettings(
        str(write_boxes(tmp_path)), task="detect", **(HEADS["fcos"] | {"model": net, "model_args": ()})
    )
    kind = kind_of("detect")
    notes = kind.start(settings, kind.read(settings)).notes
    assert any("padding of a batch reaches" in note for note in notes) is told
