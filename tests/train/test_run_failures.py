"""Runs that go wrong on the way: losses that are not finite, and images that can't be read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import fullfield
from fullfield.errors import TrainingError
from fullfield.tasks import ClassificationTask
from fullfield.tasks.predict import predict
from fullfield.train.module import TrainModule
from tests.images import TINY, best_weights, figures, read_rows, write_photos

# --- losses that are not finite ---


def test_nan_loss_stops_with_its_place_and_keeps_the_weights_before(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[bytes] = []
    loss = ClassificationTask.loss
    calls = 0

    def fail(self: ClassificationTask, batch: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 5:  # three steps an epoch
            kept.append((tmp_path / "run" / "checkpoints" / "best.safetensors").read_bytes())
            return loss(self, batch) * math.nan
        return loss(self, batch)

    monkeypatch.setattr(ClassificationTask, "loss", fail)
    with pytest.raises(TrainingError, match=r"nan in epoch 2, step 2 of it .*global step 5; images .*\.jpg.*--lr"):
        fullfield.train(photos, out=tmp_path / "run", **TINY)
    assert [row["epoch"] for row in read_rows(tmp_path / "run" / "metrics.csv")] == ["1"]
    assert (tmp_path / "run" / "checkpoints" / "best.safetensors").read_bytes() == kept[0]
    assert all(torch.isfinite(tensor).all() for tensor in best_weights(tmp_path / "run").values())
    assert len(predict(tmp_path / "run", photos / "red")) == 12


@pytest.mark.parametrize("ema", [0.0, 0.5])
@pytest.mark.usefixtures("better_every_epoch")
def test_nan_in_the_weights_after_an_epoch_is_caught_by_validation(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float
) -> None:
    def ruin(self: TrainModule) -> None:
        if self.current_epoch == 1:
            with torch.no_grad():
                self.task.model.head.fc.weight[0, 0] = math.nan  # type: ignore[union-attr]

    # after the callbacks' own hooks, so that the averaged weights are in the model already
    monkeypatch.setattr(TrainModule, "on_validation_epoch_start", lambda self: (ruin(self), self._metrics.reset()))
    with pytest.raises(TrainingError, match="validation loss is nan after epoch 2; the last good weights are kept"):
        fullfield.train(photos, out=tmp_path / "run", **TINY | {"ema": ema})
    with safe_open(tmp_path / "run" / "checkpoints" / "best.safetensors", framework="pt") as opened:
        assert json.loads(opened.metadata()["fullfield"])["metadata"]["epoch"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in best_weights(tmp_path / "run").values())


def test_learning_rate_that_blows_up_ends_in_the_same_message(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="Try a lower --lr"):
        fullfield.train(photos, out=tmp_path / "run", **TINY | {"lr": 1e30, "clip_grad": 0.0})


# --- images that can not be read ---


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Path, list[Path]]:
    """Splits with 36 training images, three of which can't be read."""
    data = tmp_path / "data"
    write_photos(data / "train", each=12)
    write_photos(data / "val", each=2, seed=1)
    empty, cut, text = (data / "train" / name for name in ("blue/00.jpg", "green/03.jpg", "red/text.png"))
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:200])
    (data / "train" / "red" / "11.jpg").unlink()
    text.write_text("not an image")
    return data, [empty, cut, text]


ALL_SEEN = TINY | {"batch_size": 12, "epochs": 2}  # 12 divides 36, so that an epoch sees every image


def test_unreadable_images_up_to_the_limit_are_listed_and_left_out(
    damaged: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    data, bad = damaged
    run = fullfield.train(data, out=tmp_path / "run", max_bad="8.34%", **ALL_SEEN).run  # three of 36
    rows = read_rows(run / "unreadable.csv")
    assert sorted(row["path"] for row in rows) == sorted(map(str, bad))
    assert all(row["reason"] for row in rows)
    assert "red/text.png" in (run / "report.html").read_text()


def test_more_than_the_limit_stop_the_run_and_the_first_is_named(
    damaged: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    data, bad = damaged
    with pytest.raises(TrainingError, match=r"3 of 36 training images.*--max-bad allows \(2\)") as caught:
        fullfield.train(data, out=tmp_path / "run", max_bad="8.33%", **ALL_SEEN)
    rows = read_rows(tmp_path / "run" / "unreadable.csv")
    assert sorted(row["path"] for row in rows) == sorted(map(str, bad))
    assert f"The first: {rows[0]['path']}: {rows[0]['reason']}" in str(caught.value)
    assert str(tmp_path / "run" / "unreadable.csv") in str(caught.value)


def test_default_limit_of_one_percent_allows_none_of_36(damaged: tuple[Path, list[Path]], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="raise --max-bad"):
        fullfield.train(damaged[0], out=tmp_path / "run", **ALL_SEEN)


@pytest.mark.parametrize(("count", "share", "allowed"), [(100, "29%", 29), (36, "8.34%", 3), (10, "100%", 10)])
def test_limit_is_the_whole_number_that_the_share_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, share: str, allowed: int
) -> None:
    class StopHereError(Exception):
        pass

    def look(run: object, limit: int, total: int, processes: object) -> None:
        assert (limit, total) == (allowed, count)
        raise StopHereError

    monkeypatch.setattr("fullfield.train.fit.UnreadableImages", look)
    for number in range(count):
        for split in ("train", "val"):
            path = tmp_path / "data" / split / str(number % 2) / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    with pytest.raises(StopHereError):
        fullfield.train(tmp_path / "data", out=tmp_path / "run", max_bad=share, **TINY)


def test_batches_without_a_readable_image_are_passed_over(damaged: tuple[Path, list[Path]], tmp_path: Path) -> None:
    data, _ = damaged
    for photo in sorted((data / "train").rglob("*.jpg"))[::2]:
        photo.write_bytes(b"")
    run = fullfield.train(data, out=tmp_path / "run", max_bad="100%", **TINY | {"batch_size": 2, "image_size": 64}).run
    assert len(figures(run)) == 3


def test_validation_without_a_readable_image_is_an_error(tmp_path: Path) -> None:
    write_photos(tmp_path / "data" / "train", each=4)
    for photo in write_photos(tmp_path / "data" / "val", each=1).rglob("*.jpg"):
        photo.write_bytes(b"")
    with pytest.raises(TrainingError, match=r"not one validation image can be read; see unreadable\.csv"):
        fullfield.train(tmp_path / "data", out=tmp_path / "run", **TINY)
    assert len(read_rows(tmp_path / "run" / "unreadable.csv")) == 3


def test_unreadable_validation_image_is_reported_once_and_stops_nothing(tmp_path: Path) -> None:
    write_photos(tmp_path / "data" / "train", each=4)
    bad = write_photos(tmp_path / "data" / "val", each=2) / "red" / "00.jpg"
    bad.write_bytes(b"")
    result = fullfield.train(tmp_path / "data", out=tmp_path / "run", **TINY | {"epochs": 1})
    assert [row["path"] for row in read_rows(result.run / "unreadable.csv")] == [str(bad)]
    assert [entry.path for entry in result.evaluation.unreadable] == [str(bad)]
    assert result.report.read_text().count(str(bad)) == 1
