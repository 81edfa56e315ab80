"""Runs that start from the weights of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fullfield
from fullfield.errors import CheckpointError, ConfigError
from fullfield.tasks import ClassificationTask
from fullfield.train.module import TrainModule
from tests.images import CLASSES, TINY, best_weights, same_weights, write_photo, write_photos

Weights = dict[str, torch.Tensor]


@pytest.fixture
def first_weights(monkeypatch: pytest.MonkeyPatch) -> list[Weights]:
    """The model's weights before the first step of each run from here on."""
    seen: list[Weights] = []
    step = TrainModule.training_step

    def look(self: TrainModule, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 0:
            seen.append({name: tensor.clone() for name, tensor in self.task.model.state_dict().items()})
        return step(self, batch, batch_idx)

    monkeypatch.setattr(TrainModule, "training_step", look)
    return seen


def test_run_starts_from_the_weights_of_another(
    finished: Path, photos: Path, tmp_path: Path, first_weights: list[Weights]
) -> None:
    result = fullfield.train(photos, out=tmp_path / "run", weights=finished, **TINY | {"epochs": 1})
    assert same_weights(first_weights[0], best_weights(finished))
    assert result.settings.weights == str(finished)


def test_weights_decide_the_model_and_the_image_size_that_were_left_open(
    finished: Path, photos: Path, tmp_path: Path
) -> None:
    options = {k: v for k, v in TINY.items() if k not in ("model", "model_args", "image_size")} | {"epochs": 1}
    write_photos(tmp_path / "large", each=2)
    for photo in (tmp_path / "large").rglob("*.jpg"):
        write_photo(photo, photo.parent.name, size=(64, 64))
    result = fullfield.train(tmp_path / "large", out=tmp_path / "run", weights=finished, **options)
    assert (result.settings.model, result.settings.image_size) == ("racnn_pico", 32)


@pytest.mark.parametrize("other", [{"model": "racnn_tiny"}, {"model_args": ("region_size=4",)}], ids=str)
def test_weights_of_another_architecture_are_refused(
    finished: Path, photos: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"holds racnn_pico with .*leave out model and model_args, or weights"):
        fullfield.train(photos, out=tmp_path / "run", weights=finished, **TINY | other)


def test_rates_of_dropping_are_the_run_s_own_not_those_of_the_weights(
    finished: Path, photos: Path, tmp_path: Path, first_weights: list[Weights]
) -> None:
    rates = []
    step = ClassificationTask.loss

    def look(self: ClassificationTask, batch: Any) -> torch.Tensor:
        rates.append(self.model.head.drop.p)  # type: ignore[union-attr]
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassificationTask, "loss", look)
        options = TINY | {"epochs": 1}
        dropping = fullfield.train(photos, out=tmp_path / "a", weights=finished, drop_rate=0.25, **options).run
        assert set(rates) == {0.25}
        rates.clear()
        fullfield.train(photos, out=tmp_path / "b", weights=dropping, **options)
        assert set(rates) == {0.0}
    assert same_weights(first_weights[0], best_weights(finished))
    assert same_weights(first_weights[1], best_weights(dropping))


def test_other_number_of_classes_needs_a_new_classifier(
    finished: Path, tmp_path: Path, first_weights: list[Weights]
) -> None:
    data = write_photos(tmp_path / "four", [*CLASSES, "grey"], each=4)
    options = TINY | {"epochs": 1}
    with pytest.raises(CheckpointError, match=r"has 3 classes, 4 are needed.*--reset-classifier"):
        fullfield.train(data, out=tmp_path / "run", weights=finished, **options)
    assert not (tmp_path / "run").exists()
    result = fullfield.train(data, out=tmp_path / "run", weights=finished, reset_classifier=True, **options)
    assert len(result.evaluation.classes) == 4
    before, start = best_weights(finished), first_weights[0]
    for name, tensor in before.items():
        if name.startswith("head.fc"):
            assert start[name].shape[0] == 4
        else:
            assert torch.equal(start[name], tensor), name
