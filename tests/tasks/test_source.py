"""Opening a model by run folder, file and name, and everything that is none of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import fullfield
from fullfield.data import Preprocess
from fullfield.errors import CheckpointError, ConfigError, ModelNotFoundError
from fullfield.tasks import open_model, source
from fullfield.tasks.source import checkpoint_metadata, pick_device
from tests.images import CLASSES, TINY


def test_run_folder_and_its_best_file_give_the_same_model(finished: Path) -> None:
    file = finished / "checkpoints" / "best.safetensors"
    stored = load_file(file)
    for path in (finished, str(finished), file):
        opened = open_model(path, device="cpu")
        assert (opened.name, opened.classes, opened.trained) == ("racnn_pico", CLASSES, True)
        assert opened.preprocess == Preprocess(image_size=32)
        assert opened.source == str(path)
        assert not opened.model.training
        assert all(torch.equal(tensor, stored[name]) for name, tensor in opened.model.state_dict().items())


def test_file_outside_a_run_opens_with_what_was_saved_beside_it(tmp_path: Path) -> None:
    model = fullfield.create_model(TINY["model"], dims=(8, 8, 8, 8), depths=(1, 1, 1, 1), num_classes=2, in_chans=1)
    preprocess = Preprocess(image_size=40, channels=1, mean=(0.3,), std=(0.2,))
    file = fullfield.save(model, tmp_path / "own.safetensors", checkpoint_metadata(("a", "b"), preprocess, note="x"))
    opened = open_model(file)
    assert opened.classes == ("a", "b")
    assert opened.preprocess == preprocess


def test_registered_name_has_random_weights_and_says_so() -> None:
    opened = open_model("racnn_pico")
    assert not opened.trained
    assert not opened.model.training
    assert len(opened.classes) == 1000
    assert opened.classes[0] == "tench"
    assert opened.preprocess.image_size == 224


def test_registered_name_takes_its_preprocessing_from_timm() -> None:
    opened = open_model("resnet10t")
    data = timm.data.resolve_model_data_config(timm.create_model("resnet10t"))
    assert opened.preprocess.image_size == data["input_size"][-1] == 176
    assert opened.preprocess.crop_share == data["crop_pct"]
    assert opened.preprocess.mean == tuple(data["mean"])


def test_registered_name_may_carry_a_weights_tag() -> None:
    assert open_model("resnet10t.c3_in1k").name == "resnet10t.c3_in1k"


def test_unknown_name_names_the_nearest() -> None:
    with pytest.raises(ModelNotFoundError, match="'racnn_tiny'"):
        open_model("racnn_tinny")


def test_pretrained_weights_that_are_not_there_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"racnn_pico can't be had.*leave out --pretrained"):
        open_model("racnn_pico", pretrained=True)


def test_pretrained_weights_without_a_network_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(source, "create_model", offline)
    with pytest.raises(CheckpointError, match=r"no route to host.*network"):
        open_model("resnet10t", pretrained=True)


def test_missing_path_names_the_nearest(finished: Path) -> None:
    with pytest.raises(CheckpointError, match="'finished'"):
        open_model(finished.with_name("finishd"))
    with pytest.raises(CheckpointError, match=r"no checkpoint or run folder racnn_tiny\.safetensors"):
        open_model("racnn_tiny.safetensors")


def test_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not a run with weights.*fullfield train"):
        open_model(tmp_path)


def _text(path: Path) -> None:
    path.write_text("not weights")


def _empty(path: Path) -> None:
    path.touch()


def _foreign(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path)


def _pickle(path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, path)


def _without_classes(path: Path) -> None:
    fullfield.save(fullfield.create_model("racnn_pico", dims=(8, 8, 8, 8), depths=(1, 1, 1, 1)), path)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (_text, "not a whole safetensors file"),
        (_empty, "not a whole safetensors file"),
        (_foreign, "not written by Fullfield"),
        (_pickle, "not a whole safetensors file"),
        (_without_classes, "no class names"),
    ],
)
def test_file_that_is_no_classifier_of_ours_is_refused(tmp_path: Path, write: object, says: str) -> None:
    file = tmp_path / "weights.safetensors"
    write(file)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=says) as caught:
        open_model(file)
    assert str(file) in str(caught.value)


def test_truncated_checkpoint_is_refused(finished: Path, tmp_path: Path) -> None:
    whole = (finished / "checkpoints" / "best.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    for size in (10, 500, len(whole) - 1):
        cut.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="truncated"):
            open_model(cut)


@pytest.mark.parametrize("device", ["cuda:99", "warp", "cpu:x", "meta", ""])
def test_device_that_can_not_compute_here_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match="try --device auto or cpu") as caught:
        pick_device(device)
    assert repr(device) in str(caught.value)


def test_auto_is_a_gpu_only_where_there_is_one() -> None:
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
