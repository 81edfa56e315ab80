"""Prediction against a forward pass by hand, and every kind of path that a user may give."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import fullfield
from fullfield.data import eval_transform, read_image
from fullfield.errors import ConfigError, DataError, RunError
from fullfield.tasks import Prediction, open_model, save_predictions
from fullfield.tasks.answers import find_images
from fullfield.tasks.predict import predict
from tests.images import CLASSES, read_rows, write_photo, write_photos


@pytest.fixture
def mixed(tmp_path: Path) -> list[Path]:
    """Five photographs of different sizes and formats."""
    sizes = [(32, 32), (200, 50), (1, 1), (33, 47), (1, 90)]
    names = ["a.jpg", "b.png", "c.bmp", "d.webp", "e.jpeg"]
    return [
        write_photo(tmp_path / name, colour, size=size)
        for name, colour, size in zip(names, ["red", "green", "blue", "red", "grey"], sizes, strict=True)
    ]


def test_labels_are_the_softmax_of_a_forward_pass_by_hand(finished: Path, mixed: list[Path]) -> None:
    opened = open_model(finished, device="cpu")
    transform = eval_transform(opened.preprocess)
    predictions = predict(finished, mixed, device="cpu")
    assert [p.path for p in predictions] == mixed
    for prediction in predictions:
        with torch.no_grad():
            logits = opened.model(transform(read_image(prediction.path))[None])[0].double()
        shares = (logits.exp() / logits.exp().sum()).tolist()
        expected = sorted(zip(CLASSES, shares, strict=True), key=lambda pair: -pair[1])
        assert [name for name, _ in prediction.labels] == [name for name, _ in expected]
        assert [share for _, share in prediction.labels] == pytest.approx([s for _, s in expected], abs=1e-5)
        assert prediction.error is None


def test_the_run_knows_colours_that_it_was_trained_on(finished: Path, tmp_path: Path) -> None:
    folder = write_photos(tmp_path, each=2, seed=5)
    guesses = predict(finished, folder)
    assert [p.labels[0][0] for p in guesses] == [p.path.parent.name for p in guesses]


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_labels_do_not_depend_on_the_batch(finished: Path, mixed: list[Path], batch_size: int) -> None:
    for one, alone in zip(predict(finished, mixed, batch_size=batch_size), mixed, strict=True):
        (other,) = predict(finished, alone)
        assert [name for name, _ in one.labels] == [name for name, _ in other.labels]
        assert [share for _, share in one.labels] == pytest.approx([share for _, share in other.labels], abs=1e-5)


def test_top_limits_the_labels_to_as_many_as_there_are(finished: Path, mixed: list[Path]) -> None:
    assert [len(predict(finished, mixed[0], top=top)[0].labels) for top in (1, 2, 3, 9)] == [1, 2, 3, 3]


@pytest.mark.parametrize("arguments", [{"top": 0}, {"top": -1}, {"batch_size": 0}], ids=str)
def test_impossible_arguments_are_refused(finished: Path, mixed: list[Path], arguments: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        predict(finished, mixed, **arguments)  # type: ignore[arg-type]


def test_unreadable_images_say_why_and_the_others_are_predicted(finished: Path, mixed: list[Path]) -> None:
    folder = mixed[0].parent
    empty, text, cut = folder / "empty.jpg", folder / "text.png", folder / "cut.jpg"
    empty.touch()
    text.write_text("not an image")
    cut.write_bytes(mixed[0].read_bytes()[:300])
    files = [empty, mixed[0], text, cut, mixed[1]]
    for batch_size in (1, 2, 16):
        results = predict(finished, files, batch_size=batch_size)
        assert [p.path for p in results] == files
        assert [bool(p.labels) for p in results] == [False, True, False, False, True]
        for result, says in zip(results, ["0 bytes", None, "not a JPEG", "damaged or cut off", None], strict=True):
            assert (result.error is None) == (says is None)
            if says:
                assert says in (result.error or "")
                assert str(result.path) in (result.error or "")
        (alone,) = predict(finished, mixed[0])
        assert dict(results[1].labels) == pytest.approx(dict(alone.labels), abs=1e-5)


def test_nothing_but_unreadable_images_is_no_error_of_the_call(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (result,) = predict(finished, tmp_path)
    assert result.labels == ()
    assert "0 bytes" in (result.error or "")


def test_folders_are_searched_through_in_order_and_each_image_comes_once(tmp_path: Path) -> None:
    names = ["b/2.jpg", "b/deep/3.PNG", "a/1.jpeg", "top.webp"]
    for name in names:
        write_photo(tmp_path / name, "red")
    (tmp_path / "notes.txt").touch()
    expected = [tmp_path / name for name in sorted(names)]
    assert find_images([tmp_path]) == expected
    assert find_images([tmp_path / "top.webp", tmp_path, f"{tmp_path}/./top.webp"]) == [expected[-1], *expected[:-1]]


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"holds no image \(.*\.jpg") as caught:
        find_images([tmp_path])
    assert str(tmp_path) in str(caught.value)


def test_no_path_at_all_is_refused() -> None:
    with pytest.raises(DataError, match="no image was given"):
        find_images([])


def test_missing_file_names_the_nearest(mixed: list[Path]) -> None:
    wrong = mixed[1].with_name("b.pgn")
    with pytest.raises(DataError, match=r"there is no image .*b\.pgn; did you mean 'b\.png'"):
        find_images([mixed[0], wrong])
    with pytest.raises(DataError, match="there is no image"):
        find_images([wrong.parent / "nowhere" / "x.jpg"])


def test_opened_model_may_be_used_again(finished: Path, mixed: list[Path]) -> None:
    opened = open_model(finished)
    assert predict(opened, mixed[0]) == predict(finished, mixed[0])


def test_untrained_registered_model_predicts_its_own_classes(mixed: list[Path]) -> None:
    (result,) = predict("test_vit2", mixed[0], top=5)
    assert len({name for name, _ in result.labels}) == 5
    assert 0 < sum(share for _, share in result.labels) < 1


def names_of_every_kind(folder: Path) -> list[Path]:
    """Long and non-ASCII names, as far as the file system takes them."""
    names = [
        "Фото №1.jpg",
        "写真.jpg",
        "e\u0301 & <b> 'q'.jpg",
        "x" * 251 + ".jpg",
        "写" * 80 + ".jpg",
        "🦆" * 62 + ".jpg",
        os.fsdecode(b"caf\xe9.jpg"),
    ]
    made = []
    for name in names:
        try:
            shutil.copy(folder / "plain.jpg", folder / name)
        except OSError:
            continue
        made.append(folder / name)
    assert made
    return made


def test_long_and_non_ascii_names_are_predicted_saved_and_drawn(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_photo(folder / "plain.jpg", "red")
    files = names_of_every_kind(folder)
    predictions = predict(finished, files)
    assert {p.error for p in predictions} == {None}
    out = save_predictions(predictions, tmp_path / "out")
    assert len(list(out.glob("*.png"))) == len(files)
    document = json.loads((out / "predictions.json").read_text(encoding="utf-8"))
    assert [entry["path"] for entry in document] == [str(p) for p in files]


def test_saved_files_hold_the_predictions(tmp_path: Path) -> None:
    photo = write_photo(tmp_path / "a.jpg", "red", size=(60, 40))
    predictions = [
        Prediction(photo, (("red", 0.75), ('"odd", name', 0.25))),
        Prediction(tmp_path / "b.jpg", (), "b.jpg: is empty"),
    ]
    out = save_predictions(predictions, tmp_path / "new" / "out")
    assert read_rows(out / "predictions.csv") == [
        {"path": str(photo), "class": "red", "probability": "0.7500", "error": ""},
        {"path": str(tmp_path / "b.jpg"), "class": "", "probability": "", "error": "b.jpg: is empty"},
    ]
    first, second = json.loads((out / "predictions.json").read_text(encoding="utf-8"))
    assert first["labels"] == [
        {"class": "red", "probability": 0.75},
        {"class": '"odd", name', "probability": 0.25},
    ]
    assert second == {"path": str(tmp_path / "b.jpg"), "labels": [], "error": "b.jpg: is empty"}
    (picture,) = out.glob("*.png")
    with Image.open(picture) as image:
        assert image.width >= 96
        assert image.height > image.width * 40 / 60  # the picture, and the panel below it


def test_images_of_one_name_in_two_folders_have_a_picture_each(finished: Path, tmp_path: Path) -> None:
    files = [write_photo(tmp_path / name / "same.jpg", "red") for name in ("a", "b")]
    out = save_predictions(predict(finished, files), tmp_path / "out")
    assert len(list(out.glob("same-*.png"))) == 2


def test_pictures_may_be_left_out(finished: Path, mixed: list[Path], tmp_path: Path) -> None:
    out = save_predictions(predict(finished, mixed), tmp_path / "out", draw=False)
    assert sorted(p.name for p in out.iterdir()) == ["predictions.csv", "predictions.json"]


def test_folder_that_can_not_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="can't be written"):
        save_predictions([], tmp_path / "file" / "out")


def test_python_function_is_the_same_as_the_room_s(finished: Path, mixed: list[Path]) -> None:
    assert fullfield.predict(finished, mixed) == predict(finished, mixed)
