"""Impossible settings are refused before anything starts, and names come from files."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from fullfield.deploy.serve.fingerprint import changed, fingerprint
from fullfield.deploy.serve.keys import ENVIRONMENT, read_keys
from fullfield.deploy.serve.run import listen
from fullfield.deploy.serve.settings import ServedModel, ServeSettings, is_loopback, name_models
from fullfield.errors import ConfigError, RunError

ONE = (ServedModel("a", "a.onnx"),)
KEY = "k" * 24


@pytest.mark.parametrize(
    ("models", "changes", "says"),
    [
        ((), {}, "no model was named"),
        ((ServedModel("a/b", "x"),), {}, "'a/b'"),
        ((*ONE, *ONE), {}, "several models are called 'a'"),
        (ONE, {"host": "0.0.0.0"}, "no key protects it"),  # noqa: S104 - what is refused
        (ONE, {"host": "example.org"}, "no key protects it"),
        (ONE, {"queue_size": 4}, "max_images is 16, but only 4"),
        (ONE, {"batch_size": 0}, "batch_size is 0"),
        (ONE, {"request_timeout_s": -1.0}, "request_timeout_s is -1.0"),
        (ONE, {"upload_timeout_s": float("nan")}, "upload_timeout_s is nan"),
        (ONE, {"threads": 0}, "threads is 0"),
        (ONE, {"port": 65536}, "port is 65536"),
        (ONE, {"max_held_bytes": 5}, "less than one body"),
    ],
)
def test_impossible_settings_are_refused(models: tuple[ServedModel, ...], changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("(", r"\(")):
        ServeSettings(models, **changes)


def test_an_open_address_needs_keys_or_the_word() -> None:
    anywhere = "0.0.0.0"  # noqa: S104 - never bound
    assert ServeSettings(ONE, host=anywhere, keys=(KEY,)).host == anywhere
    assert ServeSettings(ONE, host=anywhere, insecure=True).host == anywhere
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8")] == [True] * 4
    assert not any(is_loopback(host) for host in ("10.0.0.1", "::", "localhost.example.org", ""))


def test_models_are_named_after_their_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "my cells (2).onnx").touch()
    (tmp_path / "run.v1").mkdir()
    sources = [str(tmp_path / "my cells (2).onnx"), str(tmp_path / "run.v1"), "racnn_pico.fb", "///"]
    assert [model.name for model in name_models(sources)] == ["my-cells-2", "run.v1", "racnn_pico.fb", "model"]
    assert [model.name for model in name_models(sources[:2], ["x", "y"])] == ["x", "y"]
    with pytest.raises(ConfigError, match="4 models need as many names, got 1"):
        name_models(sources, ["x"])


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# of the lab\n\n{KEY}\n  {KEY[::-1]}2  \n")
    assert read_keys(file, {ENVIRONMENT: f"{'e' * 20}, {KEY}"}) == (KEY, KEY + "2", "e" * 20)
    assert read_keys(None, {}) == ()


@pytest.mark.parametrize("text", ["", "# none\n", "short\n", "a key with spaces in it\n", "schlüsselschlüssel\n"])
def test_unusable_keys_are_refused_without_being_quoted(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_keys(file, {})
    assert not text.strip("# \n") or text.strip() not in str(caught.value)


def test_a_missing_file_of_keys_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nokeys can't be read"):
        read_keys(tmp_path / "nokeys", {})


def test_a_port_in_use_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(RunError, match=r"choose another with --host and --port"):
            listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(RunError, match="can't listen"):
        listen("no.such.host.invalid", 0)


def test_every_file_of_a_model_counts_in_its_fingerprint(tmp_path: Path) -> None:
    net = tmp_path / "net.xml"
    net.write_text("a")
    net.with_suffix(".bin").write_text("b")
    (tmp_path / "other.bin").write_text("c")
    first = fingerprint(net)
    assert sorted(Path(file).name for file in first) == ["net.bin", "net.xml"]
    assert changed(first, fingerprint(net)) is None
    net.with_suffix(".bin").write_text("x")
    assert "net.bin has changed since the service started" in str(changed(first, fingerprint(net)))
    net.with_suffix(".bin").unlink()
    assert "net.bin is gone" in str(changed(first, fingerprint(net)))
    package = tmp_path / "net.mlpackage"
    (package / "Data").mkdir(parents=True)
    (package / "Data" / "weights").write_text("w")
    first = fingerprint(package)
    (package / "more").write_text("m")
    assert "more is new" in str(changed(first, fingerprint(package)))
    assert fingerprint("racnn_pico") == {}
