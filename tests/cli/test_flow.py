"""Train, evaluate, predict and list models by command, and the same by Python functions."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
import yaml

import fullfield
from fullfield.cli.main import main
from fullfield.errors import DataError
from tests.images import CLASSES, TINY, TINY_ARGV, figures, write_photo, write_photos

# params in millions and MACs in billions at 224, from the table of the design
PUBLISHED = {
    "racnn_pico": (6.02, 0.934),
    "racnn_nano": (10.85, 1.697),
    "racnn_tiny": (18.08, 2.801),
    "racnn_small": (28.13, 4.266),
    "racnn_base": (51.65, 8.541),
}
OTHERS = {"racnn_tiny_literal", "racnn_tiny_grid"}


# --- train ---


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", str(photos), "--out", str(run), *TINY_ARGV]) == 0
    return run


def test_train_by_command_is_train_in_python(trained: Path, finished: Path) -> None:
    assert figures(trained) == figures(finished)
    first, second = (yaml.safe_load((run / "config.yaml").read_text()) for run in (trained, finished))
    assert first | {"out": None} == second | {"out": None}


def test_train_says_what_it_fitted_and_where_everything_is(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [word for word in TINY_ARGV if word not in ("--lr", "5e-3")]
    run = tmp_path / "run [1]"
    assert main(["train", str(photos), "--out", str(run), *argv]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "3 classes, 30 train, 6 val images" in err
    assert "lr 0.00035: 1e-3 * sqrt(batch / 64) for a batch of 8" in err
    assert err.count("epoch   ") == 3
    assert "always guessing the most frequent class: 33.3%" in err
    for line in (f"Run      {run}", f"Report   {run}/report.html", f"fullfield predict '{run}' IMAGE"):
        assert line in err


def test_config_of_a_run_repeats_it_and_options_win_over_it(trained: Path, photos: Path, tmp_path: Path) -> None:
    config = ["--config", str(trained / "config.yaml")]
    assert main(["train", *config, "--out", str(tmp_path / "again")]) == 0
    assert figures(tmp_path / "again") == figures(trained)
    other = write_photos(tmp_path / "other", each=4)
    for number, words in enumerate(([str(other), *config], [*config, str(other)])):
        run = tmp_path / f"run{number}"
        assert main(["train", *words, "--epochs", "1", "--no-hflip", "--out", str(run)]) == 0
        used = yaml.safe_load((run / "config.yaml").read_text())
        assert (used["data"], used["epochs"], used["hflip"], used["lr"]) == (str(other), 1, False, 5e-3)


def test_run_that_exists_is_refused_and_replaced_only_when_asked(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(photos), "--out", str(tmp_path / "run"), *TINY_ARGV, "--epochs", "1"]
    assert main(words) == 0
    before = (tmp_path / "run" / "metrics.csv").read_text()
    assert main(words) == 1
    assert f"--resume {tmp_path / 'run'}, or replace it with --overwrite" in capsys.readouterr().err
    assert (tmp_path / "run" / "metrics.csv").read_text() == before
    assert main([*words, "--overwrite"]) == 0


def test_resume_by_command(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fullfield.train(photos, out=tmp_path / "run", **TINY | {"epochs": 1}).run
    assert main(["train", "--resume", str(run)]) == 0
    assert "after epoch 1 of 1" in capsys.readouterr().err


# --- eval ---


def test_eval_prints_the_figures_and_writes_them(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", str(trained), "--json", str(tmp_path / "e.json"), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    out, err = capsys.readouterr()
    document = json.loads((tmp_path / "e.json").read_text())
    assert document == json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert document == fullfield.eval(trained).to_dict() == fullfield.evaluate(trained).to_dict()
    assert "racnn_pico on 6 images (val)" in out
    assert f"top-1 {document['top1']:.1%}" in out
    for name in CLASSES:
        assert f"{name} " in out
    assert f"written to {tmp_path / 'out'}" in err


def test_eval_of_other_data_lists_what_it_left_out(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_photos(tmp_path / "others", each=2)
    (data / "red" / "00.jpg").write_bytes(b"")
    assert main(["eval", str(trained), str(data)]) == 0
    out, err = capsys.readouterr()
    assert "on 5 images (all)" in out
    assert f"left out: {data / 'red' / '00.jpg'}: is empty" in err


def test_eval_with_many_classes_prints_the_most_frequent_confusions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("tench", "goldfish"):
        for number in range(2):
            write_photo(tmp_path / name / f"{number}.jpg", "red")
    assert main(["eval", "test_vit2", str(tmp_path)]) == 0
    out, _ = capsys.readouterr()
    assert "the weights are random" in out
    assert "most frequent confusions" in out
    assert "and 980 more" in out


def test_eval_of_foreign_classes_fails(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(trained), str(write_photos(tmp_path, ["grey", "red"], each=2))]) == 1
    assert "it does not know 'grey'" in capsys.readouterr().err


# --- predict ---


def test_predict_prints_and_writes_what_python_returns(
    trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [str(photos / "red" / "00.jpg"), str(photos / "blue")]
    words = ["predict", str(trained), *images, "--json", str(tmp_path / "p.json"), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    out, err = capsys.readouterr()
    expected = fullfield.predict(trained, images, top=3)
    document = json.loads((tmp_path / "p.json").read_text())
    assert document == [prediction.to_dict() for prediction in expected]
    for prediction in expected:
        name, share = prediction.labels[0]
        assert any(str(prediction.path) in line and f"{name} {share:.1%}" in line for line in out.splitlines())
    assert len(list((tmp_path / "out").glob("*.png"))) == len(expected) == 13
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [str(p.path) for p in expected]
    assert f"written to {tmp_path / 'out'}" in err


def test_predict_with_an_unreadable_image_does_the_others_and_exits_with_1(
    trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "text.png"
    bad.write_text("not an image")
    assert main(["predict", str(trained), str(bad), str(photos / "red" / "00.jpg"), "--top", "1"]) == 1
    out, err = capsys.readouterr()
    assert "00.jpg" in out
    assert "text.png" not in out
    assert f"{bad}: is not a JPEG" in err


def test_predict_with_random_weights_says_so(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "test_vit2", str(photos / "red" / "00.jpg")]) == 0
    assert "the weights are random" in capsys.readouterr().err


def test_json_that_can_not_be_written_is_an_error(
    trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "no" / "such" / "p.json"
    assert main(["predict", str(trained), str(photos / "red"), "--json", str(target)]) == 1
    assert f"error: {target} can't be written" in capsys.readouterr().err


def test_whole_flow_bears_names_with_markup_and_of_every_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["[red] <b>&amp;", "日本 'x'", os.fsdecode(b"bl\xfc")]
    data, run = tmp_path / "da ta", tmp_path / "run"
    for name, colour in zip(names, CLASSES, strict=True):
        for number in range(4):
            photo = write_photo(tmp_path / "plain.jpg", colour, seed=number)
            try:
                (data / name).mkdir(parents=True, exist_ok=True)
                photo.rename(data / name / f"{name} {number}.jpg")
            except OSError:
                pytest.skip("this file system takes only names in UTF-8")
    assert main(["train", str(data), "--out", str(run), *TINY_ARGV, "--epochs", "1"]) == 0
    assert "<b>" not in (run / "report.html").read_text(encoding="utf-8")
    for words in (["eval", str(run)], ["predict", str(run), str(data), "--out", str(tmp_path / "out")]):
        capsys.readouterr()
        assert main(words) == 0
        out, _ = capsys.readouterr()
        assert all(name.encode(errors="backslashreplace").decode() in out for name in names)
    assert main(["train", "--resume", str(run)]) == 0


# --- models ---


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    file = tmp_path_factory.mktemp("models") / "models.json"
    assert main(["models", "racnn*", "--json", str(file)]) == 0
    rows: list[dict[str, object]] = json.loads(file.read_text())
    return rows


def test_models_are_listed_by_pattern(listed: list[dict[str, object]]) -> None:
    assert {row["model"] for row in listed} == PUBLISHED.keys() | OTHERS
    assert {row["source"] for row in listed} == {"fullfield"}
    assert {row["weights"] for row in listed} == {"none"}
    assert {info.name for info in fullfield.models("racnn*")} == {row["model"] for row in listed}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counted_parameters_and_macs_are_those_of_the_table(name: str, listed: list[dict[str, object]]) -> None:
    (row,) = (row for row in listed if row["model"] == name)
    params, macs = PUBLISHED[name]
    assert row["params"] == pytest.approx(params * 1e6, rel=0.01)
    assert row["macs"] == pytest.approx(macs * 1e9, rel=0.02)
    assert row["flops"] == pytest.approx(2 * macs * 1e9, rel=0.02)
    assert row["input_size"] == [3, 224, 224]


def test_models_prints_a_line_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "racnn_pico", "--image-size", "64"]) == 0
    out, _ = capsys.readouterr()
    assert "6.01" in out
    assert "64×64" in out


def test_models_of_timm_are_listed_without_being_built(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "resnet10*", "--cost", "False"]) == 0
    out, _ = capsys.readouterr()
    assert "resnet10t" in out
    assert "timm" in out
    assert "params" not in out


def test_models_without_a_pattern_are_our_own_and_their_peers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--cost", "False"]) == 0
    out, err = capsys.readouterr()
    assert all(name in out for name in PUBLISHED)
    assert "resnet50 " in out
    assert "resnet101 " not in out
    assert "of timm's: fullfield models '*'" in err


def test_python_functions_raise_what_the_commands_print(finished: Path, tmp_path: Path) -> None:
    for function in (fullfield.eval, fullfield.predict):
        with pytest.raises(DataError, match="nowhere"):
            function(finished, tmp_path / "nowhere")
