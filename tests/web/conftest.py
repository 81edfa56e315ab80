"""A served page with small models, and a browser to look at it with: `make test-web` alone runs these tests.

The server runs in a thread of the tests. Every request of every test is recorded, and one that would leave the machine
is refused and fails the test that made it.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images import finished, photos

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Python's playwright")
pytest.importorskip("gradio", reason="needs the extra app")

__all__ = ["finished", "photos"]

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZE = {"width": 1280, "height": 900}
PATIENCE_MS = 60_000  # two cores, and other tests beside


@pytest.fixture(scope="session")
def models(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run that knows colours, its twin as an ONNX file, and a registered model with random weights."""
    from fullfield.deploy.export import export

    file = tmp_path_factory.mktemp("exported") / "colours.onnx"
    export(finished, "onnx", file, verify=False)
    return [str(finished), str(file), "mobilenetv3_small_050"]


@pytest.fixture(scope="session")
def address(models: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the page is served."""
    import uvicorn
    from fastapi import FastAPI

    os.environ["GRADIO_TEMP_DIR"] = str(tmp_path_factory.mktemp("uploads"))
    from fullfield.app.page import mount_page
    from fullfield.cli.app import _listen

    application = mount_page(FastAPI(), models, "/page", device="cpu")
    server = uvicorn.Server(uvicorn.Config(application, log_level="warning", timeout_graceful_shutdown=1))
    with _listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/page/"
        server.should_exit = True
        thread.join(timeout=10)


@pytest.fixture(scope="session")
def browser() -> Iterator[sync_api.Browser]:
    """The system's Chromium; none is ever downloaded."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if path is None:  # whoever asks for these tests wants them run: a skip would look like a pass
        pytest.fail("needs a browser: install Chromium, or set CHROMIUM to the path of one")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: sync_api.Browser, address: str, request: pytest.FixtureRequest) -> Iterator[sync_api.Page]:
    """The loaded page in a window of `SIZE`; `parametrize("page", [...], indirect=True)` gives another."""
    context = browser.new_context(viewport=getattr(request, "param", SIZE))
    outside: list[str] = []

    def guard(route: sync_api.Route) -> None:
        if route.request.url.startswith((address.removesuffix("page/"), "data:", "blob:")):
            route.continue_()
        else:
            outside.append(route.request.url)
            route.abort()

    context.route("**/*", guard)
    opened = context.new_page()
    opened.set_default_timeout(PATIENCE_MS)
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.goto(address)
    opened.wait_for_selector("#samples img")
    yield opened
    context.close()
    assert outside == [], "the page asked for something beyond this machine"
    assert problems == [], "the page's scripts failed"
