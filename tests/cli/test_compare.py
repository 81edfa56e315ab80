"""`fullfield compare`: the page, the table, what is refused before anything is measured, and what Ctrl-C leaves."""

from __future__ import annotations

import json
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fullfield.cli.choose import ChooseArguments
from fullfield.cli.compare import CompareArguments, run
from fullfield.cli.parse import parse
from fullfield.errors import ConfigError

module = import_module("fullfield.measure.compare")  # the package may give the function under this name
LITTLE = ["--quick", "--seconds", "0.01", "--batch", "2", "--image-size", "32", "--device", "cpu"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_and_the_users_own_model_come_on_one_page(
    finished: Path, photos: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("net.py").write_text(
        "import fullfield\n"
        "def mine():\n"
        "    shape = {'dims': (8, 16, 24, 32), 'depths': (1, 1, 1, 1), 'region_size': 1}\n"
        "    return fullfield.create_model('racnn_pico', num_classes=3, **shape)\n"
    )
    argv = [str(finished), "net.py:mine", str(photos), "--json", "c.json", "--plot", "c.png", *LITTLE]
    argv += ["--parts", "accuracy", "cost", "erf", "speed"]
    assert run([*argv, "--accuracy", "net.py:mine=40.5", "--accuracy-source", "a guess"]) == 0
    out, err = capsys.readouterr()
    assert "racnn_pico (finished)" in out
    assert "40.5%" in out
    assert f"page: {here}/compare.html" in err
    assert "comparing: 0%" in err
    assert "random weights" in err
    page = Path("compare.html").read_text(encoding="utf-8")
    assert "2 models side by side" in page
    assert f"fullfield compare {finished} net.py:mine {photos}" in page
    with Image.open("c.png") as picture:
        assert picture.format == "PNG"
    document = json.loads(Path("c.json").read_text())
    run_, mine = document["models"]
    assert (run_["weights"], mine["weights"], mine["top1"]) == ("trained", "random", 0.405)
    assert (document["data"], document["budget"]["batch"]) == (str(photos), 2)
    assert run_["macs"] == mine["macs"]  # the same net at the same size


def test_data_may_stand_behind_the_models_or_be_named(
    finished: Path, photos: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, Any]] = []

    def stop(models: Any, data: Any, **_: object) -> None:
        seen.append((models, data))
        raise KeyboardInterrupt

    monkeypatch.setattr("fullfield.cli.compare.compare", stop)
    (here / "list.csv").touch()
    checkpoint = str(finished / "checkpoints" / "best.safetensors")
    for argv, expected in (
        (["a", "b"], (("a", "b"), None)),
        (["a", str(photos)], (("a",), str(photos))),
        (["a", "sample:blood_cells"], (("a",), "sample:blood_cells")),
        (["a", "list.csv"], (("a",), "list.csv")),
        (["a", str(finished)], (("a", str(finished)), None)),
        (["a", checkpoint, "--data", str(photos)], (("a", checkpoint), str(photos))),
        (["a", "net.py:mine"], (("a", "net.py:mine"), None)),
    ):
        with pytest.raises(KeyboardInterrupt):
            run(argv)
        assert seen.pop() == expected


def test_ctrl_c_while_measuring_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "cost_report", press)
    with pytest.raises(KeyboardInterrupt):
        run(["resnet10t", "--json", "c.json", *LITTLE])
    assert list(here.iterdir()) == []


def test_a_model_that_can_not_be_built_is_named_and_the_exit_code_tells(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no room for [bold] it")

    monkeypatch.setattr(module, "open_model", fail)
    assert run(["resnet10t", *LITTLE]) == 1
    assert "not measured: building of resnet10t: no room for [bold] it" in capsys.readouterr().err
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "name at least one model"),
        (["sample:blood_cells"], "is no model; name the models before it"),
        (["a", "sample:blood_cells", "--data", "photos"], "are two data sets"),
        (["a", "--out", "page.pdf"], "must end in .html"),
        (["a", "--plot", "page.gif"], "must end in .png or .svg or .pdf"),
        (["a", "--out", "nowhere/page.html"], "the folder of nowhere/page.html does not exist"),
        (["a", "--accuracy", "82.9"], "takes MODEL=PERCENT, such as racnn_tiny=82.9, got '82.9'"),
        (["a", "--accuracy", "a=high"], "got 'a=high'"),
        (["a", "--batch", "0"], "batch must be above 0"),
        (["resnet10t", "--accuracy", "resnet10t=82"], "say where they come from"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_answered_before_anything_is_measured(argv: list[str], says: str, here: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        run(argv)
    assert list(here.iterdir()) == []


def test_an_accuracy_s_model_may_hold_an_equals_sign(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(*_: object, accuracy: dict[str, float], **__: object) -> None:
        assert accuracy == {"runs/lr=3": 81.0}
        raise KeyboardInterrupt

    monkeypatch.setattr("fullfield.cli.compare.compare", check)
    with pytest.raises(KeyboardInterrupt):
        run(["runs/lr=3", "--accuracy", "runs/lr=3=81"])


def test_quick_measures_less_and_single_amounts_win(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(*_: object, budget: object, **__: object) -> None:
        assert (budget.erf_images, budget.timing_seconds, budget.batch) == (2, 7.0, 4)  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr("fullfield.cli.compare.compare", check)
    with pytest.raises(KeyboardInterrupt):
        run(["a", "--quick", "--seconds", "7"])


def test_several_models_come_before_the_options() -> None:
    arguments = parse(CompareArguments, "compare", ["racnn_tiny", "resnet50", "photos", "--parts", "cost", "speed"])
    assert (arguments.models, arguments.parts) == (("racnn_tiny", "resnet50", "photos"), ("cost", "speed"))


def test_the_commands_of_the_page_parse() -> None:
    page = Path(__file__).parents[2] / "docs" / "measure" / "compare.md"
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^\$ fullfield (\w+) (.*)$", text, re.MULTILINE)
    assert {name for name, _ in commands} == {"compare", "choose"}
    for name, words in commands:
        parse(CompareArguments if name == "compare" else ChooseArguments, name, shlex.split(words))
