"""Whole runs of detectors and segmenters: the task found, what they leave behind, bad files, and the same seed."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import fullfield
from fullfield.errors import CheckpointError, ConfigError, DataError, TrainingError
from fullfield.tasks.dense_file import load_dense
from fullfield.tasks.open import OpenedDense, open_any
from fullfield.tasks.source import open_model
from fullfield.train.module import TrainModule
from tests.images import best_weights, figures, read_rows, same_weights, write_photos
from tests.train.dense_data import (
    COMMON,
    HEADS,
    boxes,
    columns,
    detector_run,
    label_map,
    maps,
    rectangles,
    segmenter_run,
    write_boxes,
    write_maps,
    write_voc,
    write_yolo,
)

pytest.importorskip("faster_coco_eval", reason="needs fullfield[detect]")
pytest.importorskip("segmentation_models_pytorch", reason="needs fullfield[segment]")

__all__ = ["boxes", "detector_run", "maps", "segmenter_run"]

RUNS = {"detect": ("detector_run", "fcos"), "segment": ("segmenter_run", "upernet")}
ONE = {"epochs": 1}


@pytest.fixture(params=sorted(RUNS))
def run(request: pytest.FixtureRequest) -> Path:
    """A finished run of each task."""
    found: Path = request.getfixturevalue(RUNS[request.param][0])
    return found


# --- the task ---


def test_every_form_of_boxes_is_known_for_detection_and_gives_the_same_run(
    detector_run: Path, tmp_path: Path, boxes: Path
) -> None:
    runs = {}
    for form, write in (("yolo", write_yolo), ("voc", write_voc)):
        result = fullfield.train(write(tmp_path / form), out=tmp_path / f"{form}-run", **HEADS["fcos"])
        assert result.settings.task == "detect"
        runs[form] = result.run
    assert yaml.safe_load((detector_run / "config.yaml").read_text())["task"] == "detect"
    assert same_weights(best_weights(runs["yolo"]), best_weights(detector_run))
    assert not same_weights(best_weights(runs["voc"]), best_weights(detector_run))  # it has no validation part


def test_label_maps_are_known_for_segmentation(segmenter_run: Path) -> None:
    assert yaml.safe_load((segmenter_run / "config.yaml").read_text())["task"] == "segment"


@pytest.mark.slow
def test_task_that_is_named_is_taken(maps: Path, tmp_path: Path) -> None:
    options = {k: v for k, v in COMMON.items() if k != "scale_jitter"}
    result = fullfield.train(maps, out=tmp_path / "run", task="classify", **options | ONE)
    assert result.evaluation.classes == ("images", "masks")  # its folders


@pytest.mark.parametrize(("task", "says"), [("detect", "holds no detection annotations"), ("segment", "images.*masks")])
def test_task_that_the_data_is_not_for_is_refused(tmp_path: Path, task: str, says: str) -> None:
    write_photos(tmp_path / "photos", each=3)
    with pytest.raises(DataError, match=says):
        fullfield.train(tmp_path / "photos", out=tmp_path / "run", task=task, **COMMON)
    assert not (tmp_path / "run").exists()


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("fcos", {"mixup": 0.5}, "--mixup means nothing for --task detect"),
    ("fcos", {"label_smoothing": 0.2}, "--label-smoothing means nothing for --task detect"),
    ("fcos", {"sparsity": 0.5}, "--sparsity means nothing for --task detect"),
    ("fcos", {"loss": "dice"}, "--loss means nothing for --task detect"),
    ("upernet", {"crop": 0.5}, "--crop means nothing for --task segment"),
    ("upernet", {"mosaic": 0.5}, "--mosaic means nothing for --task segment"),
    ("upernet", {"image_size_start": 32}, "--image-size-start means nothing for --task segment"),
    ("upernet", {"loss": "dicee"}, "no segmentation loss 'dicee'.*'dice'"),
    ("fcos", {"head": "fcoss"}, "no detection head 'fcoss'; did you mean 'fcos'"),
    ("upernet", {"head": "upernett"}, "no segmentation head 'upernett'.*did you mean 'upernet'"),
    ("fcos", {"head_args": ("fpn_chanels=8",)}, "'fpn_chanels' of fcos.*'fpn_channels'"),
    ("upernet", {"head_args": ("chanels=8",)}, "'chanels'.*'channels'"),
    (
        "fcos",
        {"strategy": "fsdp", "devices": 2},
        "--strategy fsdp does not divide the weights of --task detect; use --strategy ddp",
    ),
    ("upernet", {"strategy": "fsdp", "devices": 2}, "--strategy fsdp does not divide"),
    ("fcos", {"model": "vit_tiny_patch16_224", "model_args": ()}, "has feature maps at strides 16"),
    ("fcos", {"model_args": ("in_chans=5",)}, "channels is 5"),
    ("fcos", {"freeze": ("stages.9",)}, "begins with 'stages.9'"),
]


@pytest.mark.parametrize(("head", "options", "says"), WRONG, ids=str)
def test_wrong_options_are_refused_by_name_and_leave_no_run_behind(
    boxes: Path, maps: Path, tmp_path: Path, head: str, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        fullfield.train(maps if head == "upernet" else boxes, out=tmp_path / "run", **HEADS[head] | options)
    assert not (tmp_path / "run").exists()


def test_dense_settings_are_refused_for_classification(tmp_path: Path) -> None:
    options = {k: v for k, v in COMMON.items() if k != "scale_jitter"}
    with pytest.raises(ConfigError, match=r"--head means nothing for --task classify"):
        fullfield.train(write_photos(tmp_path / "photos"), out=tmp_path / "run", head="fcos", **options)


@pytest.mark.parametrize("options", [HEADS["mask_rcnn"], HEADS["fcos"] | {"copy_paste": 0.5}], ids=["head", "paste"])
def test_outlines_that_the_data_does_not_have_are_missed_before_there_is_a_run(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match="boxes alone"):
        fullfield.train(write_voc(tmp_path / "voc"), out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


# --- a finished run ---


def test_run_folder_holds_all_its_parts(run: Path) -> None:
    written = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    assert written >= {"config.yaml", "metrics.csv", "report.html", "checkpoints/best.safetensors"}
    assert written >= {"evaluation/evaluation.json", "evaluation/per_class.csv"}
    assert not [name for name in written if "partial" in name]
    assert (run / "report.html").read_text().startswith("<!doctype html>")


def test_metrics_have_the_columns_of_the_task(detector_run: Path, segmenter_run: Path) -> None:
    both = ["epoch", "lr", "train_loss"], ["images_per_s", "seconds", "data_wait"]
    detection = ["val_ap", "val_ap50", "val_ap75", "val_mask_ap", "val_mask_ap50"]
    assert columns(detector_run) == [*both[0], *detection, *both[1]]
    segmentation = ["val_loss", "val_miou", "val_macc", "val_pixel_accuracy"]
    assert columns(segmenter_run) == [*both[0], *segmentation, *both[1]]


def test_best_weights_are_those_of_the_best_epoch_and_open_with_all_beside_them(
    detector_run: Path, segmenter_run: Path
) -> None:
    for folder, score in ((detector_run, "val_ap"), (segmenter_run, "val_miou")):
        opened = open_any(folder, device="cpu")
        assert isinstance(opened, OpenedDense)
        values = [float(row[score]) for row in read_rows(folder / "metrics.csv")]
        assert opened.metadata[score] == max(values)
        assert opened.metadata["epoch"] == values.index(max(values)) + 1
        assert not opened.model.training
    assert (opened.classes, len(opened.colours), opened.preprocess.window) == (("class 0", "class 1", "class 2"), 3, 64)
    detector = open_any(detector_run, device="cpu")
    assert isinstance(detector, OpenedDense)
    assert (detector.task, detector.name, detector.classes) == ("detect", "fcos racnn_pico", ("red", "green"))
    assert detector.preprocess.short_side == 64


def test_opened_twice_the_weights_are_those_of_the_file_and_outputs_are_equal(run: Path) -> None:
    first, second = (open_any(source, device="cpu") for source in (run, run / "checkpoints" / "best.safetensors"))
    assert same_weights(first.model.state_dict(), best_weights(run))
    image = torch.from_numpy(rectangles(5)[0]).permute(2, 0, 1) / 255
    with torch.no_grad():
        if first.task == "detect":
            for opened in (first, second):
                opened.model.head.score_thresh = 0.0  # so that something is found
            ours, theirs = (opened.model([image])[0].boxes for opened in (first, second))
        else:
            ours, theirs = (opened.model(image[None]) for opened in (first, second))
    assert len(ours)
    assert torch.equal(ours, theirs)


def test_truncated_or_edited_file_is_refused(run: Path, tmp_path: Path) -> None:
    whole = (run / "checkpoints" / "best.safetensors").read_bytes()
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"bad\.safetensors"):
        open_any(bad)
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    for key, value, says in (
        ("classes", ["only"], "fit its model|can't be built"),
        ("head", "fcoss", "can't be built.*was the file edited"),
        ("head_arguments", {"nothing": 1}, "can't be built.*was the file edited"),
        ("preprocess", {"side": 3}, "edited"),
    ):
        fullfield_header = json.loads(header["__metadata__"]["fullfield"])
        fullfield_header["metadata"][key] = value
        edited = {**header, "__metadata__": {**header["__metadata__"], "fullfield": json.dumps(fullfield_header)}}
        text = json.dumps(edited).encode()
        text += b" " * (-len(text) % 8)
        bad.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
        with pytest.raises(CheckpointError, match=says):
            load_dense(bad)


def test_what_deals_with_classifiers_refuses_the_run_and_says_what_it_is(run: Path) -> None:
    for use in (open_model, fullfield.load):
        with pytest.raises(CheckpointError, match=r"holds a model for --task (detect|segment) on racnn_pico, not a"):
            use(run)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["fcos", "mask_rcnn", "upernet"])
def test_same_seed_gives_the_same_weights_and_another_gives_others(
    boxes: Path, maps: Path, tmp_path: Path, head: str
) -> None:
    options = HEADS[head] | ONE | {"scale_jitter": "auto", "photometric": 0.5, "drop_path": 0.2, "vflip": True}
    data = maps if head == "upernet" else boxes
    first, again, other = (
        fullfield.train(data, out=tmp_path / str(i), seed=seed, **options).run for i, seed in enumerate((3, 3, 4))
    )
    assert figures(first) == figures(again)
    assert same_weights(best_weights(first), best_weights(again))
    assert not same_weights(best_weights(first), best_weights(other))


# --- bad files ---


def write_bad_boxes(root: Path) -> dict[Path, str]:
    write_boxes(root, train=20)
    corrupt, other = root / "images" / "003.png", root / "images" / "007.png"
    corrupt.write_bytes(corrupt.read_bytes()[:200])
    Image.new("RGB", (60, 64)).save(other)
    return {corrupt: "", other: "annotated as 64 × 64"}


def write_bad_maps(root: Path) -> dict[Path, str]:
    write_maps(root, train=20)
    corrupt, other = root / "train" / "images" / "003.png", root / "train" / "masks" / "007.png"
    corrupt.write_bytes(corrupt.read_bytes()[:200])
    Image.fromarray(label_map([], (60, 64))).save(other)
    return {corrupt: "", other: "60 x 64"}


@pytest.mark.parametrize(
    ("head", "write"),
    [pytest.param("fcos", write_bad_boxes, marks=pytest.mark.slow), ("upernet", write_bad_maps)],
)
def test_bad_files_are_named_and_counted_and_training_goes_on_up_to_max_bad(
    tmp_path: Path, head: str, write: Any
) -> None:
    bad = write(tmp_path / "data")
    result = fullfield.train(tmp_path / "data", out=tmp_path / "run", max_bad="10%", **HEADS[head] | ONE)
    listed = {Path(row["path"]): row["reason"] for row in read_rows(result.run / "unreadable.csv")}
    assert listed.keys() == bad.keys()
    for path, reason in bad.items():
        assert reason in listed[path]
        assert path.name in result.report.read_text()
    with pytest.raises(TrainingError, match=r"of 20 training images can't be read, more than --max-bad allows \(1\)"):
        fullfield.train(tmp_path / "data", out=tmp_path / "second", max_bad="5%", **HEADS[head] | ONE)


@pytest.mark.parametrize(
    "head", ["fcos", *(pytest.param(head, marks=pytest.mark.slow) for head in ("mask_rcnn", "upernet"))]
)
def test_loss_that_is_not_a_number_names_the_images(
    boxes: Path, maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    start = TrainModule.on_train_batch_start

    def spoil(self: TrainModule, batch: Any, batch_idx: int) -> None:
        start(self, batch, batch_idx)
        if self.current_epoch == 1:
            with torch.no_grad():
                next(self.task.model.backbone.parameters()).fill_(float("nan"))  # type: ignore[union-attr]

    monkeypatch.setattr(TrainModule, "on_train_batch_start", spoil)
    with pytest.raises(TrainingError, match=r"the loss is nan in epoch 2, step 1 .*images .*\d\d\d\.png.*weights are"):
        fullfield.train(maps if head == "upernet" else boxes, out=tmp_path / "run", **HEADS[head])
    assert load_dense(tmp_path / "run").metadata["epoch"] == 1


@pytest.mark.parametrize("head", ["fcos", "upernet"])
def test_batch_of_one_small_image_that_batch_norm_can_not_take_is_explained(
    boxes: Path, maps: Path, tmp_path: Path, head: str
) -> None:
    options = HEADS[head] | {"batch_size": 1, "image_size": 32, "long_side": 32}
    with pytest.raises(
        TrainingError, match=r"a batch of one image of 32 pixels can't be normalised.*--batch-size of 2"
    ):
        fullfield.train(maps if head == "upernet" else boxes, out=tmp_path / "run", **options)


@pytest.mark.slow
def test_pictures_without_objects_are_trained_on(tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "data", empty=tuple(range(1, 8)))  # at least one batch has none at all
    for head in ("fcos", "mask_rcnn"):
        run = fullfield.train(data, out=tmp_path / head, **HEADS[head] | ONE).run
        assert len(figures(run)) == 1
