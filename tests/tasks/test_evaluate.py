"""Evaluation of a finished run: which images it takes, and its figures counted anew from single predictions."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fullfield.data import eval_transform, read_image
from fullfield.errors import ConfigError, DataError, RunError
from fullfield.tasks import Evaluation, open_model
from fullfield.tasks.evaluate_any import evaluate_any as evaluate
from tests.images import CLASSES, read_rows, write_photo, write_photos


def paths(evaluation: Evaluation) -> set[Path]:
    return {image.path for image in evaluation.images}


@pytest.fixture
def others(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "others", each=3, seed=9)


def test_own_data_is_split_as_in_training(finished: Path, photos: Path) -> None:
    held_out, trained_on = evaluate(finished), evaluate(finished, split="train")
    assert held_out.split == "val"
    assert paths(held_out).isdisjoint(paths(trained_on))
    assert paths(held_out) | paths(trained_on) == set(photos.rglob("*.jpg"))
    # what the run itself wrote down when it ended
    written = read_rows(finished / "evaluation" / "predictions.csv")
    assert paths(held_out) == {Path(row["path"]) for row in written}
    assert {row["true"] for row in written} == set(CLASSES)


def test_checkpoint_file_inside_a_run_has_the_run_s_data(finished: Path) -> None:
    assert paths(evaluate(finished / "checkpoints" / "best.safetensors")) == paths(evaluate(finished))


def test_other_data_is_evaluated_with_all_its_images(finished: Path, others: Path) -> None:
    result = evaluate(finished, others)
    assert result.split == "all"
    assert paths(result) == set(others.rglob("*.jpg"))


def test_test_part_is_taken_where_there_is_one(finished: Path, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_photos(tmp_path / "data" / split, each=2)
    result = evaluate(finished, tmp_path / "data")
    assert result.split == "test"
    assert paths(result) == set((tmp_path / "data" / "test").rglob("*.jpg"))
    assert len(evaluate(finished, tmp_path / "data", split="all").images) == 18


def test_split_that_is_not_there_is_refused(finished: Path, others: Path) -> None:
    with pytest.raises(DataError, match="no 'test' part; it has train, val"):
        evaluate(finished, others, split="test")


def test_single_predictions_equal_a_forward_pass_by_hand(finished: Path, others: Path) -> None:
    opened = open_model(finished, device="cpu")
    result = evaluate(finished, others, batch_size=4)
    transform = eval_transform(opened.preprocess)
    for image in result.images:
        assert image.path.parent.name == CLASSES[image.true]
        with torch.no_grad():
            shares = opened.model(transform(read_image(image.path))[None]).softmax(1)[0]
        assert image.predicted == int(shares.argmax())
        assert image.confidence == pytest.approx(float(shares.max()), abs=1e-5)


def test_figures_do_not_depend_on_batches_or_workers(finished: Path, others: Path) -> None:
    first = evaluate(finished, others, batch_size=64)
    second = evaluate(finished, others, batch_size=2, workers=1)
    assert first.result.scalars() == pytest.approx(second.result.scalars(), rel=1e-5)
    assert [image.predicted for image in first.images] == [image.predicted for image in second.images]


def test_foreign_class_is_named(finished: Path, tmp_path: Path) -> None:
    write_photos(tmp_path, ["red", "grey", "cyan"], each=2)
    with pytest.raises(DataError, match="knows 3; it does not know 'cyan', 'grey'") as caught:
        evaluate(finished, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "train on this data" in str(caught.value)


def test_subset_of_classes_is_labelled_by_name_not_by_position(finished: Path, tmp_path: Path) -> None:
    write_photos(tmp_path, ["red", "green"], each=3)
    result = evaluate(finished, tmp_path)
    assert result.classes == CLASSES
    for image in result.images:
        assert result.classes[image.true] == image.path.parent.name
    assert result.result.confusion.sum(axis=1).tolist() == [0, 3, 3]
    assert np.isnan(result.result.recall[0])
    assert result.to_dict()["recall"]["blue"] is None


def test_order_of_classes_in_a_csv_does_not_matter(finished: Path, others: Path, tmp_path: Path) -> None:
    rows = [f"{image},{image.parent.name}" for image in sorted(others.rglob("*.jpg"), reverse=True)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    listed, walked = evaluate(finished, tmp_path / "list.csv"), evaluate(finished, others)
    np.testing.assert_array_equal(listed.result.confusion, walked.result.confusion)


def test_unreadable_image_is_left_out_and_listed(finished: Path, others: Path) -> None:
    bad = others / "red" / "00.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    result = evaluate(finished, others)
    assert [entry.path for entry in result.unreadable] == [str(bad)]
    assert "damaged or cut off" in result.unreadable[0].reason
    assert paths(result) == set(others.rglob("*.jpg")) - {bad}
    assert result.result.images == 8
    assert result.to_dict()["unreadable"] == [{"path": str(bad), "reason": result.unreadable[0].reason}]


def test_nothing_but_unreadable_images_is_an_error_that_names_one(finished: Path, others: Path) -> None:
    for file in others.rglob("*.jpg"):
        file.write_text("not an image")
    with pytest.raises(DataError, match=r"none of the 9 images can be read: .*blue/\d\d\.jpg: is not a JPEG"):
        evaluate(finished, others)


def test_saved_files_agree_with_each_other_and_with_a_recount(finished: Path, others: Path, tmp_path: Path) -> None:
    shutil.copy(others / "red" / "01.jpg", others / "blue" / "wrong.jpg")  # at least one mistake to count
    result = evaluate(finished, others)
    folder = result.save(tmp_path / "new" / "out")

    rows = read_rows(folder / "predictions.csv")
    index = {name: i for i, name in enumerate(CLASSES)}
    true = np.array([index[row["true"]] for row in rows])
    predicted = np.array([index[row["predicted"]] for row in rows])
    confusion = np.zeros((3, 3), int)
    np.add.at(confusion, (true, predicted), 1)
    assert {Path(row["path"]) for row in rows} == set(others.rglob("*.jpg"))
    assert [row["right"] for row in rows] == [str(int(right)) for right in true == predicted]
    assert all(1 / 3 <= float(row["confidence"]) <= 1 for row in rows)

    header, *lines = (folder / "confusion.csv").read_text().split()[2:]
    assert header == "predicted,blue,green,red"
    assert lines == [f"{name},{','.join(map(str, confusion[i]))}" for i, name in enumerate(CLASSES)]

    document = json.loads((folder / "evaluation.json").read_text())
    assert document["images"] == len(rows) == 10
    assert document["top1"] == pytest.approx((true == predicted).mean())
    assert document["confusion"] == confusion.tolist()
    assert document["majority"] == pytest.approx(4 / 10)
    for i, name in enumerate(CLASSES):
        assert document["recall"][name] == pytest.approx(confusion[i, i] / confusion[i].sum())
    assert document["mean_recall"] == pytest.approx(np.mean(list(document["recall"].values())))
    assert (document["model"], document["split"], document["trained"]) == ("racnn_pico", "all", True)


def test_names_that_are_not_utf8_are_saved(finished: Path, others: Path, tmp_path: Path) -> None:
    odd = others / "red" / os.fsdecode(b"caf\xe9.jpg")
    try:
        shutil.copy(others / "red" / "00.jpg", odd)
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    folder = evaluate(finished, others).save(tmp_path / "out")
    assert "caf\\udce9.jpg" in (folder / "predictions.csv").read_text(encoding="utf-8")


def test_folder_that_can_not_be_written_is_refused(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="can't be written"):
        evaluate(finished).save(tmp_path / "file" / "out")


def test_registered_model_needs_data_to_be_named() -> None:
    with pytest.raises(DataError, match=r"racnn_pico is a registered model.*name the images"):
        evaluate("racnn_pico")


def test_untrained_model_is_marked(tmp_path: Path) -> None:
    # ImageNet's own names, so that the classes are known
    for name, colour in (("tench", "red"), ("goldfish", "green")):
        for number in range(2):
            write_photo(tmp_path / name / f"{number}.jpg", colour)
    result = evaluate("test_vit2", tmp_path)
    assert not result.trained
    assert result.to_dict()["trained"] is False
    assert result.result.top5 is not None


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"workers": -1}], ids=str)
def test_impossible_arguments_are_refused(finished: Path, arguments: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        evaluate(finished, **arguments)  # type: ignore[arg-type]
