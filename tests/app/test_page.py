"""The page as a whole, without a browser: mounted, quiet towards the outside, and closed to forged paths."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from fullfield.app.inputs import sample_pictures
from fullfield.app.page import build_page, mount_page
from fullfield.app.style import css
from fullfield.cli.app import _listen, run
from fullfield.errors import CheckpointError, ConfigError


@pytest.fixture(scope="module")
def client(weights: dict[str, Path]) -> TestClient:
    application = FastAPI()
    application.get("/health")(lambda: "well")
    return TestClient(mount_page(application, [weights["classify"], weights["detect"]], "/page"))


def test_page_is_mounted_beside_what_the_application_has(client: TestClient) -> None:
    assert client.get("/health").json() == "well"
    answer = client.get("/page/")
    assert answer.status_code == 200
    assert "<title>Fullfield</title>" in answer.text or '"title":"Fullfield"' in answer.text


def test_page_loads_nothing_from_elsewhere_and_reports_nothing(client: TestClient) -> None:
    text = client.get("/page/").text
    loaded = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(https?:[^"]*)"', text)
    assert loaded == []
    config = client.get("/page/config").json()
    assert config["analytics_enabled"] is False
    assert config["stylesheets"] == []
    assert "url(" not in css()
    assert "@import" not in css()


def test_page_offers_no_interface_for_programs(client: TestClient) -> None:
    named = client.get("/page/gradio_api/info").json()
    assert named["named_endpoints"] == {}
    config = client.get("/page/config").json()
    assert config["footer_links"] == []


def test_files_of_the_machine_are_not_served(client: TestClient, weights: dict[str, Path]) -> None:
    for path in ("/etc/passwd", str(weights["classify"])):
        assert client.get(f"/page/gradio_api/file={path}").status_code in (403, 404)


def test_samples_are_pictures_of_the_package() -> None:
    assert [path.is_file() for path in sample_pictures()] == [True] * 4


def test_wrong_model_is_told_before_there_is_a_page(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        build_page([tmp_path / "missing.safetensors"])


# --- the command ---


def test_command_without_a_model_says_so() -> None:
    with pytest.raises((ConfigError, SystemExit)):
        run([])


def test_taken_and_impossible_ports_are_sentences() -> None:
    with _listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"can't listen on 127\.0\.0\.1, port {port} .*choose another --port"):
            run(["anything", "--port", str(port)])
    with pytest.raises(ConfigError, match="there is no port 70000"):
        run(["anything", "--port", "70000"])


def test_command_tells_a_wrong_model_before_it_serves(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        run([str(tmp_path / "missing.safetensors"), "--port", "0"])
