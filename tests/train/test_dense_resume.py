"""A detector's or segmenter's run that was stopped within an epoch, then resumed, ends as one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

import fullfield
from fullfield.errors import ConfigError
from fullfield.tasks.run_folder import RunFolder
from fullfield.train.checkpoint import newest_state
from fullfield.train.module import TrainModule
from tests.train.dense_data import HEADS, boxes, maps
from tests.train.test_resume import assert_same_run

pytest.importorskip("faster_coco_eval", reason="needs fullfield[detect]")
pytest.importorskip("segmentation_models_pytorch", reason="needs fullfield[segment]")

__all__ = ["boxes", "maps"]

VARIED: dict[str, Any] = {"epochs": 2, "scale_jitter": "auto", "photometric": 0.5, "drop_path": 0.2}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("fcos", {}),
    ("mask_rcnn", {}),
    ("upernet", {}),
    ("fcos", {"mosaic": 0.5, "crop": 0.5, "ema": 0.0, "workers": 1}),
    ("mask_rcnn", {"copy_paste": 0.5, "accumulate": 2, "layer_decay": 0.5}),
    ("upernet", {"freeze": ("stem", "stages.0"), "loss": "cross_entropy+lovasz:0.5", "workers": 1}),
]


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Press Ctrl-C in the first step of the second epoch; `.undo()` takes the finger off."""
    step = TrainModule.training_step

    def press(self: TrainModule, batch: Any, batch_idx: int) -> Any:
        if self.current_epoch == 1 and batch_idx == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(TrainModule, "training_step", press)
    return monkeypatch


@pytest.mark.parametrize(
    ("head", "changes"),
    [pytest.param(*case, marks=[] if case == ("mask_rcnn", {}) else [pytest.mark.slow]) for case in CASES],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_run_stopped_within_an_epoch_ends_as_if_nothing_had_happened(
    boxes: Path, maps: Path, tmp_path: Path, interrupt: pytest.MonkeyPatch, head: str, changes: dict[str, Any]
) -> None:
    data, options = maps if head == "upernet" else boxes, HEADS[head] | VARIED | changes
    with pytest.raises(KeyboardInterrupt):
        fullfield.train(data, out=tmp_path / "run", **options)
    position = newest_state(RunFolder(tmp_path / "run"))[0].position
    assert (position.epoch, position.batches) == (1, options.get("accumulate", 1))
    interrupt.undo()
    whole = fullfield.train(data, out=tmp_path / "whole", **options).run
    resumed = fullfield.train(resume=tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)
    assert resumed.report.exists()


def test_annotations_that_have_changed_are_refused(boxes: Path, tmp_path: Path, interrupt: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    shutil.copytree(boxes, data)
    with pytest.raises(KeyboardInterrupt):
        fullfield.train(data, out=tmp_path / "run", **HEADS["fcos"])
    interrupt.undo()
    file = data / "annotations" / "instances_train.json"
    kept = json.loads(file.read_text())
    for key, value in (
        ("bbox", [1, 1, 20, 20]),
        ("category_id", 9),
        ("iscrowd", 1),
        ("segmentation", [[5, 5, 9, 5, 9, 9]]),
    ):
        changed = json.loads(json.dumps(kept))
        changed["annotations"][0][key] = value
        if key == "segmentation":
            del changed["annotations"][0]["area"]
        file.write_text(json.dumps(changed))
        with pytest.raises(ConfigError, match=r"the lists of images.*is not what it was.*--allow-change images"):
            fullfield.train(resume=tmp_path / "run")
    file.write_text(json.dumps(kept, indent=1))  # another text of the same content
    fullfield.train(resume=tmp_path / "run")


@pytest.mark.slow
def test_label_maps_under_other_names_are_refused(maps: Path, tmp_path: Path, interrupt: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    shutil.copytree(maps, data)
    with pytest.raises(KeyboardInterrupt):
        fullfield.train(data, out=tmp_path / "run", **HEADS["upernet"])
    interrupt.undo()
    for folder in ("images", "masks"):
        (data / "train" / folder / "003.png").rename(data / "train" / folder / "another.png")
    with pytest.raises(ConfigError, match="the lists of images"):
        fullfield.train(resume=tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("head", ["fcos", "upernet"])
def test_head_and_loss_can_not_change_unasked(
    boxes: Path, maps: Path, tmp_path: Path, interrupt: pytest.MonkeyPatch, head: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        fullfield.train(maps if head == "upernet" else boxes, out=tmp_path / "run", **HEADS[head])
    interrupt.undo()
    change = {"loss": "dice"} if head == "upernet" else {"head": "retinanet"}
    with pytest.raises(ConfigError, match=r"change (loss|head) from (cross_entropy|fcos) to (dice|retinanet)"):
        fullfield.train(resume=tmp_path / "run", **change)
