"""A worker that dies costs its batch and is started again, from the very file that the service started with."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from fullfield.deploy.serve.process import WorkerDied, WorkerProcess
from fullfield.deploy.serve.service import ModelService
from tests.deploy.serve.fake import FACTORY, ODD
from tests.deploy.serve.helpers import PNG, app_of, model_file, picture, running, settings, until

pytestmark = pytest.mark.anyio


def only_service(client: object) -> ModelService:
    [service] = app_of(client).state.serving.services.values()  # type: ignore[arg-type]
    return service


def pid_of(service: ModelService) -> int:
    [worker] = service._workers.values()
    return worker.pid


async def test_a_worker_that_dies_gives_its_batch_a_503_and_the_next_one_an_answer(net: Path) -> None:
    async with running(settings(net, batch_size=3, batch_wait_ms=500)) as client:
        service, first = only_service(client), pid_of(only_service(client))
        widths = (32, ODD["dies"], 32)
        answers = await asyncio.gather(
            *(client.post("/v1/predict", content=picture(size=(w, 20)), headers=PNG) for w in widths)
        )
        for answer in answers:
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "worker_died")
            assert answer.headers["Retry-After"] == "1"
        # Taken while no worker lives, answered when one does.
        assert (await client.post("/v1/predict", content=picture(), headers=PNG)).status_code == 200
        assert pid_of(service) != first
        deaths = app_of(client).state.serving.metrics.registry.get_sample_value(
            "fullfield_worker_deaths_total", {"model": "net"}
        )
        assert deaths == 1


async def test_a_worker_killed_while_it_waits_costs_nobody_anything(net: Path) -> None:
    async with running(settings(net)) as client:
        assert (await client.get("/ready")).json() == {"ready": True, "models": {"net": "ready"}}
        os.kill(pid_of(only_service(client)), signal.SIGKILL)
        await until(lambda: not only_service(client).ready)
        told = await client.get("/ready")
        assert (told.status_code, told.json()) == (503, {"ready": False, "models": {"net": "restarting"}})
        assert (await client.post("/v1/predict", content=picture(), headers=PNG)).status_code == 200
        assert (await client.get("/ready")).status_code == 200


async def test_a_worker_that_hangs_is_stopped_and_started_again(net: Path) -> None:
    async with running(settings(net, batch_timeout_s=0.5)) as client:
        answer = await client.post("/v1/predict", content=picture(size=(ODD["hangs"], 20)), headers=PNG)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "worker_died")
        assert (await client.post("/v1/predict", content=picture(), headers=PNG)).status_code == 200


async def test_a_worker_killed_while_it_loads_is_started_again_and_requests_wait_for_it(
    net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = WorkerProcess.start
    starts = 0

    async def dying_once(load: dict[str, Any], *, timeout_s: float) -> WorkerProcess:
        nonlocal starts
        starts += 1
        if starts == 1:
            raise WorkerDied("ended")
        return await start(load, timeout_s=timeout_s)

    async with running(settings(net)) as client:
        service = only_service(client)
        monkeypatch.setattr(WorkerProcess, "start", dying_once)
        os.kill(pid_of(service), signal.SIGKILL)
        await until(lambda: starts == 1 and not service.ready)
        assert (await client.get("/ready")).json()["models"] == {"net": "restarting"}
        assert (await client.post("/v1/predict", content=picture(), headers=PNG)).status_code == 200
        assert starts == 2


@pytest.mark.parametrize("damage", ["swapped", "truncated", "removed"])
async def test_a_file_that_changed_while_serving_is_not_loaded(
    net: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = net.read_bytes()
    async with running(settings(net)) as client:
        if damage == "removed":
            net.unlink()
        else:
            net.write_bytes(whole[:9] if damage == "truncated" else model_file(net.parent, "detect").read_bytes())
        # What was loaded goes on.
        assert (await client.post("/v1/predict", content=picture(), headers=PNG)).status_code == 200
        os.kill(pid_of(only_service(client)), signal.SIGKILL)
        await until(lambda: only_service(client).failure is not None)
        told = await client.get("/ready")
        assert (told.status_code, told.json()["models"]["net"]) == (503, "refused")
        answer = await client.post("/v1/predict", content=picture(), headers=PNG)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        assert str(net) not in answer.text
        assert (await client.get("/health")).status_code == 200
        [logged] = [record for record in caplog.records if record.msg == "model_refused"]
        assert str(net) in logged.fields["reason"]  # type: ignore[attr-defined]
        assert ("is gone" if damage == "removed" else "has changed") in logged.fields["reason"]  # type: ignore[attr-defined]
        # Put back, it serves again.
        net.write_bytes(whole)
        await until(lambda: only_service(client).ready)
        assert (await client.post("/v1/predict", content=picture(), headers=PNG)).status_code == 200


async def test_one_worker_goes_on_where_the_others_file_was_swapped(net: Path) -> None:
    async with running(settings(net, workers=2)) as client:
        service = only_service(client)
        net.write_bytes(b"{}")
        os.kill(service._workers[0].pid, signal.SIGKILL)
        await until(lambda: service.failure is not None)
        assert (await client.get("/ready")).status_code == 503
        assert (await client.post("/v1/predict", content=picture(), headers=PNG)).status_code == 200


async def test_a_model_that_cannot_be_loaded_is_not_ready_and_says_so(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_text("no model")
    async with running(settings(broken)) as client:
        assert (await client.get("/ready")).json() == {"ready": False, "models": {"broken": "refused"}}
        assert "is damaged or missing; export it again" in str(only_service(client).failure)
        assert (await client.post("/v1/predict", content=picture(), headers=PNG)).status_code == 503


async def test_a_factory_that_cannot_be_imported_is_told(net: Path) -> None:
    async with running(settings(net, factory="no.such:thing")) as client:
        assert "ModuleNotFoundError" in str(only_service(client).failure)


async def test_while_a_model_is_loaded_requests_are_told_to_come_back(net: Path) -> None:
    async with running(settings(net), wait=False) as client:
        answer = await client.post("/v1/predict", content=picture(), headers=PNG)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        assert (await client.get("/ready")).json()["models"] == {"net": "loading"}


async def test_no_worker_is_left_when_the_application_ends(net: Path) -> None:
    async with running(settings(net, workers=2, factory=FACTORY)) as client:
        pids = [worker.pid for worker in only_service(client)._workers.values()]
        assert len(pids) == 2
        assert all(psutil.pid_exists(pid) for pid in pids)
    assert not any(psutil.pid_exists(pid) for pid in pids)


async def test_a_worker_ignores_the_signals_that_stop_the_service(net: Path) -> None:
    async with running(settings(net)) as client:
        pid = pid_of(only_service(client))
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
        assert (await client.post("/v1/predict", content=picture(), headers=PNG)).status_code == 200
        assert pid_of(only_service(client)) == pid
