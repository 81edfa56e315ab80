"""Mutated images and mutated requests crash nothing: the service answers, and no worker dies."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.deploy.serve.helpers import KEY, ROOT, app_of, picture, running, service, settings

FORMS = {
    "PNG": "png",
    "JPEG": "jpeg",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tiff",
    "PPM": "x-portable-pixmap",
}


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip bytes, cut, repeat or splice; mostly near the head, where the structure is."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        kind, place = rng.integers(5), int(rng.integers(len(changed)) * rng.random() ** 2)
        if kind == 0:
            changed[place] = int(rng.integers(256))
        elif kind == 1:
            changed[place : place + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff"])
        elif kind == 2:
            del changed[place : place + int(rng.integers(1, 40))]
        elif kind == 3:
            changed[place:place] = changed[place : place + int(rng.integers(1, 40))]
        else:
            del changed[max(place, 8) :]
        if not changed:
            return b""
    return bytes(changed)


@pytest.mark.anyio
@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
async def test_mutated_images_crash_nothing(net: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    sound = {form: picture(100, (48, 40), form) for form in FORMS}
    told: Counter[int] = Counter()
    async with running(settings(net, max_pixels=4_000_000, queue_size=count)) as client:
        room = asyncio.Semaphore(32)

        async def ask(form: str, data: bytes) -> None:
            async with room:
                kind = {"Content-Type": f"image/{FORMS[form]}"}
                told[(await client.post("/v1/predict", content=data, headers=kind)).status_code] += 1

        forms = rng.choice(list(FORMS), count)
        await asyncio.gather(*(ask(form, mutated(sound[form], rng)) for form in forms))
        deaths = app_of(client).state.serving.metrics.registry.get_sample_value(
            "fullfield_worker_deaths_total", {"model": "net"}
        )
    assert set(told) == {200, 422}, told
    assert told[422] > count / 5
    assert not deaths


@pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="needs schemathesis")
@pytest.mark.parametrize(
    ("examples", "keys"),
    [(3, []), pytest.param(100, [], marks=pytest.mark.slow), pytest.param(30, [KEY], marks=pytest.mark.slow)],
)
def test_schemathesis_finds_nothing(net: Path, tmp_path: Path, examples: int, keys: list[str]) -> None:
    hooks = Path(__file__).with_name("schemathesis_hooks.py")
    with service(net, keys=keys) as served:
        command = [
            *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{served.address}/openapi.json"),
            *("--max-examples", str(examples), "--seed", "0", "--no-color", "--continue-on-failure"),
            *("--generation-database", "none", "--max-failures", "20"),
            *(("-H", f"X-API-Key: {KEY}") if keys else ()),
            *(("--phases", "coverage,fuzzing") if examples < 10 else ()),
        ]
        run = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
            cwd=tmp_path,
            env={**os.environ, "SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": f"{hooks.parent}:{ROOT}"},
        )
        assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
        assert not [line for line in served.lines() if line["event"] in ("worker_died", "failed", "model_failed")]
