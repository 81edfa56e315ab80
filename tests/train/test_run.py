"""Whole runs of a second each: what they leave behind, the same seed, other models, and what is refused beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open

import fullfield
from fullfield.errors import CheckpointError, ConfigError, DataError, ModelNotFoundError, RunError
from fullfield.tasks.evaluate_any import evaluate_any as evaluate
from fullfield.tasks.predict import predict
from tests.images import CLASSES, TINY, best_weights, figures, read_rows, same_weights, write_photos

# --- a finished run ---


def test_run_folder_holds_all_its_parts_and_nothing_half_written(finished: Path) -> None:
    assert sorted(str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file()) == [
        "checkpoints/best.safetensors",
        "checkpoints/step-00000006.ckpt",
        "checkpoints/step-00000006.ckpt.sha256",
        "checkpoints/step-00000009.ckpt",
        "checkpoints/step-00000009.ckpt.sha256",
        "config.yaml",
        "evaluation/confusion.csv",
        "evaluation/evaluation.json",
        "evaluation/predictions.csv",
        "metrics.csv",
        "report.html",
    ]


def test_config_holds_every_setting_as_used_and_the_command(finished: Path, photos: Path) -> None:
    text = (finished / "config.yaml").read_text()
    assert text.startswith(f"# Repeat with: fullfield train {photos} --task classify --model racnn_pico ")
    config = yaml.safe_load(text)
    assert config["data"] == str(photos)
    fitted = {"model_args": (*TINY["model_args"], "region_size=[1,1,1,1]")}  # to images of 32 pixels
    for name, value in (TINY | fitted).items():
        assert config[name] == (list(value) if isinstance(value, tuple) else value)


def test_best_weights_are_those_of_the_best_epoch_and_carry_their_classes(finished: Path) -> None:
    with safe_open(finished / "checkpoints" / "best.safetensors", framework="pt") as opened:
        metadata = json.loads(opened.metadata()["fullfield"])["metadata"]
    top1 = [float(row["val_top1"]) for row in read_rows(finished / "metrics.csv")]
    assert metadata["classes"] == list(CLASSES)
    assert metadata["val_top1"] == max(top1)
    assert metadata["epoch"] == top1.index(max(top1)) + 1  # the first of equals


def test_best_weights_are_the_averaged_ones_and_training_goes_on_with_the_others(photos: Path, tmp_path: Path) -> None:
    run = fullfield.train(photos, out=tmp_path / "run", **TINY | {"epochs": 1}).run
    last = torch.load(run / "checkpoints" / "step-00000003.ckpt", weights_only=True)
    averaged, current = (
        {name.removeprefix("task.model."): tensor for name, tensor in last[part].items() if "task.model." in name}
        for part in ("state_dict", "current_model_state")
    )
    assert same_weights(best_weights(run), averaged)
    assert not same_weights(best_weights(run), current)


def test_held_out_figure_is_that_of_the_best_weights(finished: Path) -> None:
    document = json.loads((finished / "evaluation" / "evaluation.json").read_text())
    assert document["top1"] == max(float(row["val_top1"]) for row in read_rows(finished / "metrics.csv"))
    assert document["top1"] > document["majority"]
    again = evaluate(finished).to_dict()
    assert again.pop("loss") == pytest.approx(document.pop("loss"), rel=1e-5)  # other batches
    assert again == document


def test_result_names_what_was_written(photos: Path, tmp_path: Path) -> None:
    result = fullfield.train(photos, out=tmp_path / "run", **TINY | {"epochs": 1})
    assert result.run == tmp_path / "run"
    assert result.report.read_text().startswith("<!doctype html>")
    assert result.settings.epochs == 1
    assert result.evaluation.split == "val"


def test_given_splits_are_kept_and_the_test_part_is_what_is_reported(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_photos(tmp_path / "data" / split, each=4, seed=len(split))
    result = fullfield.train(tmp_path / "data", out=tmp_path / "run", **TINY | {"epochs": 1})
    assert result.evaluation.split == "test"
    assert {image.path for image in result.evaluation.images} == set((tmp_path / "data" / "test").rglob("*.jpg"))


def test_runs_without_a_name_are_numbered(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "racnn_pico-1").mkdir(parents=True)
    assert fullfield.train(photos, **TINY | {"epochs": 1}).run == Path("runs/racnn_pico-2")


# --- the same again ---


def test_same_seed_gives_the_same_figures_and_the_same_weights(finished: Path, photos: Path, tmp_path: Path) -> None:
    again = fullfield.train(photos, out=tmp_path / "again", **TINY).run
    assert figures(again) == figures(finished)
    assert same_weights(best_weights(again), best_weights(finished))


def test_one_worker_reads_the_same_as_none(finished: Path, photos: Path, tmp_path: Path) -> None:
    again = fullfield.train(photos, out=tmp_path / "again", **TINY | {"workers": 1}).run
    assert figures(again) == figures(finished)
    assert same_weights(best_weights(again), best_weights(finished))


def test_another_seed_gives_other_weights(finished: Path, photos: Path, tmp_path: Path) -> None:
    other = fullfield.train(photos, out=tmp_path / "other", seed=1, **TINY).run
    assert figures(other) != figures(finished)
    assert not same_weights(best_weights(other), best_weights(finished))


def test_all_that_is_random_in_a_step_follows_the_seed(photos: Path, tmp_path: Path) -> None:
    options = TINY | {"epochs": 1, "mixup": 0.5, "cutmix": 0.5, "drop_path": 0.2, "drop_rate": 0.2, "rand_augment": 9}
    runs = [fullfield.train(photos, out=tmp_path / str(i), erasing=0.3, vflip=True, **options).run for i in (1, 2)]
    assert figures(runs[0]) == figures(runs[1])
    assert same_weights(best_weights(runs[0]), best_weights(runs[1]))


# --- other models ---


def test_model_of_timm_is_trained_evaluated_and_used_in_the_same_way(photos: Path, tmp_path: Path) -> None:
    result = fullfield.train(
        photos, out=tmp_path / "run", **TINY | {"model": "resnet10t", "model_args": (), "epochs": 1}
    )
    assert result.evaluation.model == "resnet10t"
    assert evaluate(result.run).result.images == 6
    (one,) = predict(result.run, photos / "red" / "00.jpg")
    assert {name for name, _ in one.labels} == set(CLASSES)


def test_model_of_fixed_input_size_is_built_for_the_run_s(photos: Path, tmp_path: Path) -> None:
    options = TINY | {"model": "vit_tiny_patch16_224", "model_args": ("depth=1",), "image_size": 64, "epochs": 1}
    run = fullfield.train(photos, out=tmp_path / "run", **options).run
    assert best_weights(run)["pos_embed"].shape[1] == 1 + (64 // 16) ** 2
    assert len(predict(run, photos)) == 36


def test_grey_images_are_a_model_argument(photos: Path, tmp_path: Path) -> None:
    options = TINY | {"epochs": 1, "model_args": (*TINY["model_args"], "in_chans=1")}
    run = fullfield.train(photos, out=tmp_path / "run", **options).run
    assert len(predict(run, photos)) == 36


# --- what is refused before anything is written ---


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"model": "racnn_picco"}, ModelNotFoundError, "'racnn_pico'"),
        ({"model": "resnet10t.nothing", "model_args": ()}, ConfigError, "resnet10t.nothing can't be built.*tag"),
        ({"model_args": ("dimz=[8]",)}, ConfigError, "'dims'"),
        ({"model": "resnet10t", "model_args": ("colour=3",)}, ConfigError, "resnet10t can't be built.*colour"),
        ({"model_args": ("num_classes=7", "in_chans=5")}, ConfigError, "channels is 5"),
        ({"pretrained": True, "model_args": ()}, ConfigError, "racnn_pico can't be built.*No pretrained weights"),
        ({"epoch": 3}, ConfigError, "no option 'epoch'; did you mean 'epochs'"),
        ({"device": "cuda:77"}, ConfigError, "cuda:77"),
        ({"weights": "nowhere"}, CheckpointError, "no checkpoint or run folder nowhere"),
    ],
    ids=str,
)
def test_wrong_options_leave_no_run_behind(
    photos: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        fullfield.train(photos, out=tmp_path / "run", **TINY | options)
    assert not (tmp_path / "run").exists()


def test_wrong_data_leaves_no_run_behind(tmp_path: Path) -> None:
    write_photos(tmp_path / "one", ["red"], each=3)
    for data, says in ((tmp_path / "nowhere", "does not exist"), (tmp_path / "one", "only one class")):
        with pytest.raises(DataError, match=says):
            fullfield.train(data, out=tmp_path / "run", **TINY)
    assert not (tmp_path / "run").exists()


def test_argument_that_timm_would_ignore_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ls_init_value is null"):
        fullfield.train(photos, out=tmp_path / "run", model="convnext_atto", model_args=("ls_init_value=null",))
    assert not (tmp_path / "run").exists()


def test_data_or_settings_or_a_run_to_resume_but_not_two_of_them(finished: Path, photos: Path) -> None:
    settings = fullfield.train.settings.TrainSettings(str(photos))
    for arguments in (
        {},
        {"settings": settings, "data": photos},
        {"settings": settings, "epochs": 3},
        {"resume": finished, "settings": settings},
        {"resume": finished, "epochs": 4},
    ):
        with pytest.raises(ConfigError):
            fullfield.train(**arguments)


def test_finished_run_is_never_overwritten_unasked(finished: Path, photos: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    with pytest.raises(RunError, match="--overwrite"):
        fullfield.train(photos, out=finished, **TINY)
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before


def test_overwriting_is_not_passed_on_by_the_config(photos: Path, tmp_path: Path) -> None:
    options = TINY | {"epochs": 1, "out": tmp_path / "run", "overwrite": True}
    fullfield.train(photos, **options)
    fullfield.train(photos, **options)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["overwrite"] is False


# --- stopping early ---


def test_patience_stops_after_so_many_epochs_without_a_better_one(photos: Path, tmp_path: Path) -> None:
    options = TINY | {"lr": 1e-12, "epochs": 6}  # nothing is learned, so nothing gets better
    assert len(figures(fullfield.train(photos, out=tmp_path / "two", patience=2, **options).run)) == 3
    assert len(figures(fullfield.train(photos, out=tmp_path / "none", **options).run)) == 6


@pytest.mark.usefixtures("better_every_epoch")
def test_patience_does_not_stop_while_it_gets_better(photos: Path, tmp_path: Path) -> None:
    run = fullfield.train(photos, out=tmp_path / "run", patience=1, **TINY).run
    assert len(figures(run)) == 3
