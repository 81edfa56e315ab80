"""What holds for every command: help, exit codes, and errors that name the nearest and never show a traceback."""

from __future__ import annotations

import dataclasses
import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fullfield.cli.app import AppArguments
from fullfield.cli.bench import BenchArguments
from fullfield.cli.cam import CamArguments
from fullfield.cli.choose import ChooseArguments
from fullfield.cli.compare import CompareArguments
from fullfield.cli.convert import ConvertArguments
from fullfield.cli.erf import ErfArguments
from fullfield.cli.evaluate import EvalArguments
from fullfield.cli.export import ExportArguments
from fullfield.cli.main import COMMANDS, main
from fullfield.cli.models import ModelsArguments
from fullfield.cli.pack import PackArguments
from fullfield.cli.predict import PredictArguments
from fullfield.cli.push import PushArguments
from fullfield.cli.serve import ServeArguments
from fullfield.cli.shift import ShiftArguments
from fullfield.cli.train import TrainArguments
from fullfield.version import __version__

ARGUMENTS = {
    "models": ModelsArguments,
    "train": TrainArguments,
    "eval": EvalArguments,
    "predict": PredictArguments,
    "convert": ConvertArguments,
    "pack": PackArguments,
    "bench": BenchArguments,
    "erf": ErfArguments,
    "cam": CamArguments,
    "shift": ShiftArguments,
    "compare": CompareArguments,
    "choose": ChooseArguments,
    "export": ExportArguments,
    "serve": ServeArguments,
    "app": AppArguments,
    "push": PushArguments,
}
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command; return its exit code, standard output and standard error."""

    def run(*argv: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(word) for word in argv])
        except SystemExit as stopped:  # wrong usage, and --help
            code = int(stopped.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


def test_the_tables_name_the_same_commands() -> None:
    assert ARGUMENTS.keys() == COMMANDS.keys()


@pytest.mark.parametrize("command", ARGUMENTS)
def test_help_names_every_option(call: Call, command: str) -> None:
    code, out, _ = call(command, "--help")
    assert code == 0
    assert f"usage: fullfield {command}" in out
    for field in dataclasses.fields(ARGUMENTS[command]):
        flag, place = f"--{field.name.replace('_', '-')}", field.name.upper()
        assert re.search(rf"^[│ ]*({flag}\b|\[?{place}\b)", out, re.MULTILINE), field.name
    words = " ".join(out.split())
    if command == "train":
        assert "--config FILE" in words
        assert "--resume RUN" in words


@pytest.mark.parametrize("argv", [(), ("--help",), ("-h",), ("help",)], ids=str)
def test_without_a_command_all_are_listed(call: Call, argv: tuple[str, ...]) -> None:
    code, out, _ = call(*argv)
    assert code == 0
    for command, what in COMMANDS.items():
        assert f"fullfield {command} " in out
        assert what in out


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_version_is_the_package_s(call: Call, flag: str) -> None:
    assert call(flag) == (0, f"fullfield {__version__}\n", "")


@pytest.mark.parametrize(("typed", "meant"), [("trian", "train"), ("evaluate", "eval"), ("model", "models")])
def test_unknown_command_names_the_nearest(call: Call, typed: str, meant: str) -> None:
    code, out, err = call(typed, "photos")
    assert (code, out) == (2, "")
    assert f"error: there is no command '{typed}'; did you mean '{meant}'" in err


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (("train", "photos", "--epoch", "3"), "--epochs"),
        (("train", "photos", "--batchsize", "3"), "--batch-size"),
        (("eval", "run", "--worker", "3"), "--workers"),
        (("predict", "run", "a.jpg", "--topp", "3"), "--top"),
        (("models", "--image-sizes", "3"), "--image-size"),
    ],
)
def test_unknown_option_names_the_nearest(call: Call, argv: tuple[str, ...], meant: str) -> None:
    code, out, err = call(*argv)
    assert (code, out) == (2, "")
    assert "Unrecognized option" in err
    assert meant in err


@pytest.mark.parametrize(
    ("code", "argv", "says"),
    [
        (2, ("train",), "DATA"),
        (2, ("eval",), "RUN"),
        (2, ("predict",), "RUN"),
        (2, ("train", "photos", "--epochs", "many"), "--epochs"),
        (2, ("train", "photos", "--epochs", "0"), "epochs must be at least 1, got 0"),
        (2, ("train", "photos", "--precision", "8"), "'bf16'"),
        (2, ("train", "photos", "--max-bad", "lots"), "max_bad"),
        (2, ("train", "photos", "--device", "warp"), "'warp'"),
        (2, ("train", "--config", "nowhere.yaml"), "nowhere.yaml can't be read"),
        (2, ("train", "photos", "--config"), "error: --config needs a value"),
        (2, ("train", "--resume", "run", "--allow-change"), "--allow-change needs the names of settings"),
        (1, ("train", "--resume", "nowhere"), "error: nowhere does not exist"),
        (1, ("train", "nowhere"), "error: 'nowhere' does not exist"),
        (1, ("train", "nowhere/[bold]/photos"), "'nowhere/[bold]/photos'"),
        (1, ("train", "sample:blood_cels"), "'blood_cells'"),
        (1, ("eval", "racnn_picco", "photos"), "did you mean 'racnn_pico'"),
        (1, ("eval", "racnn_pico"), "name the images"),
        (1, ("eval", "runs/nowhere"), "no checkpoint or run folder runs/nowhere"),
        (1, ("predict", "racnn_picco", "a.jpg"), "'racnn_pico'"),
        (1, ("predict", "racnn_pico", "nowhere.jpg"), "error: there is no image nowhere.jpg"),
        (1, ("predict", "racnn_pico"), "error: no image was given"),
        (1, ("predict", "racnn_pico", "x" * 300), "name too long"),
        (1, ("eval", "x" * 300), "name too long"),
        (1, ("train", "x" * 300), "name too long"),
        (1, ("models", "racnn_picco"), "no model matches 'racnn_picco'; did you mean 'racnn_pico'"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else None,
)
def test_errors_name_what_is_wrong_on_standard_error(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, argv: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, err = call(*argv)
    assert (found, out) == (code, "")
    assert says.lower() in err.lower()
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_exits_with_130(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fullfield.tasks.open.open_any", press)
    assert call("predict", "run", "a.jpg")[0] == 130


def test_bugs_are_not_hidden(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("fullfield.tasks.open.open_any", fail)
    with pytest.raises(ZeroDivisionError):
        call("predict", "run", "a.jpg")


def test_names_that_the_terminal_can_not_show_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    main(["--help"])
    print("写\udce9", file=screen)
    screen.flush()
    assert screen.buffer.getvalue().endswith(b"\\u5199\\udce9\n")  # type: ignore[attr-defined]


def test_command_is_installed() -> None:
    script = Path(sys.executable).with_name("fullfield")
    if not script.exists():
        pytest.skip("needs the package installed with its script beside this Python")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == f"fullfield {__version__}\n"
