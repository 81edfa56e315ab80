"""What the service's tests share: pictures, an application without a network, and a service in its own process."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import tempfile
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from fastapi import FastAPI
from PIL import Image

from fullfield.deploy.serve.app import create_app
from fullfield.deploy.serve.settings import ServedModel, ServeSettings
from tests.deploy.serve.fake import FACTORY

ROOT = Path(__file__).resolve().parents[3]
PNG = {"Content-Type": "image/png"}
KEY = "k" * 24


@cache
def picture(grey: int = 128, size: tuple[int, int] = (32, 24), form: str = "PNG") -> bytes:
    """Return an image file of noise about a grey value; `size` is width and height."""
    noise = np.random.default_rng(grey).integers(-20, 20, (size[1], size[0], 3))
    file = io.BytesIO()
    Image.fromarray(np.clip(grey + noise, 0, 255).astype(np.uint8)).save(file, form)
    return file.getvalue()


def bomb(width: int = 20_000, height: int = 10_000) -> bytes:
    """Return a PNG of a few bytes whose header tells a huge picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def model_file(folder: Path, task: str = "classify", *, name: str = "net", delay_s: float = 0.0) -> Path:
    """Write what `FakePredictor` opens."""
    path = folder / f"{name}.onnx"
    path.write_text(json.dumps({"task": task, "delay_s": delay_s}))
    return path


def settings(*files: Path, **changes: Any) -> ServeSettings:
    """Return settings with the fake predictor."""
    return ServeSettings(
        tuple(ServedModel(file.stem, str(file)) for file in files), **{"factory": FACTORY, "port": 0, **changes}
    )


@asynccontextmanager
async def running(made: ServeSettings, *, wait: bool = True, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    """Run an application in this loop, without a network; `client.app` is the application."""
    app = create_app(made)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers, timeout=60) as client,
    ):
        client.app = app  # type: ignore[attr-defined]
        if wait:
            for service in app.state.serving.services.values():
                await asyncio.wait_for(service.settled.wait(), 60)
        yield client


def app_of(client: httpx.AsyncClient) -> FastAPI:
    app: FastAPI = client.app  # type: ignore[attr-defined]
    return app


async def until(condition: Any, seconds: float = 20.0) -> None:
    """Wait until a function gives true."""
    end = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < end, "it did not happen in time"
        await asyncio.sleep(0.02)


class Service:
    """A service in its own process.

    Attributes:
        address: Such as "http://127.0.0.1:40000".
    """

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process, self.log = process, log
        assert process.stdout is not None
        self.address = process.stdout.readline().strip()
        assert self.address.startswith("http"), self.lines()

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def lines(self) -> list[dict[str, Any]]:
        """Return what was logged; every line must be JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@contextmanager
def service(*files: Path, env: dict[str, str] | None = None, **changes: Any) -> Iterator[Service]:
    """Start a service in its own process, and kill it at the end if it lives."""
    told = {"models": [[f.stem, str(f)] for f in files], "factory": FACTORY, "port": 0, **changes}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.deploy.serve.service_process", json.dumps(told)],
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            )
        try:
            yield Service(process, log)
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
