"""`fullfield serve` says where and what it serves, ends with 0 after a signal, and refuses in one line."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fullfield.cli.main import main

Call = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.skipif(importlib.util.find_spec("uvicorn") is None, reason="needs the extra serve")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run `fullfield serve ...`; return its exit code, standard output and standard error."""

    def run(*argv: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["serve", *map(str, argv)])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("a.onnx", "--host", "::"), ":: can be reached from other machines, and no key protects it"),
        (("a.onnx", "b.onnx", "--name", "x"), "2 models need as many names, got 1"),
        (("a.onnx", "a.onnx"), "several models are called 'a"),
        (("a.onnx", "--keys", "nokeys"), "the file of keys nokeys can't be read"),
        (("a.onnx", "--batch-size", "0"), "batch_size is 0"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(
    call: Call, argv: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FULLFIELD_API_KEYS", raising=False)
    code, out, err = call(*argv)
    assert (code, out) == (2, "")
    assert says in " ".join(err.split())


def test_a_model_that_cannot_be_loaded_ends_the_command_with_its_sentence(call: Call, tmp_path: Path) -> None:
    code, out, err = call(tmp_path / "missing.onnx", "--port", "0")
    assert (code, out) == (1, "")
    assert err.rstrip().splitlines()[-1].startswith("error: there is no file ")


@pytest.mark.slow
def test_a_run_is_served_with_its_page_and_a_signal_ends_it_with_0(finished: Path, photos: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "fullfield.cli.main",
            "serve",
            str(finished),
            "--port",
            "0",
            "--device",
            "cpu",
            "--page",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        import httpx

        assert process.stdout is not None
        said = ""
        while "curl" not in said:
            line = process.stdout.readline()
            assert line, process.communicate()
            said += line
        assert said.startswith("finished: ")
        assert "3 classes" in said
        address = said.split("serving at ")[1].split(",")[0]
        assert f"  curl -F files=@photo.jpg {address}/v1/predict\n" in said
        data = (photos / "red" / "00.jpg").read_bytes()
        told = httpx.post(f"{address}/v1/predict", content=data, headers={"Content-Type": "image/jpeg"}).json()
        import fullfield

        [expected] = fullfield.predict(finished, photos / "red" / "00.jpg", device="cpu")
        labels = told["answers"][0]["labels"]
        assert [one["class"] for one in labels] == [name for name, _ in expected.labels]
        assert [one["probability"] for one in labels] == pytest.approx([p for _, p in expected.labels], abs=1e-5)
        assert f"the page: {address}/page/\n" in said
        page = httpx.get(f"{address}/page/")
        assert page.status_code == 200
        assert "gradio" in page.text
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
