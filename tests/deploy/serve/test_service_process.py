"""The service as a process: connections, signals, orphans and logs, over a loopback socket."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.deploy.serve.fake import ODD, SECRET
from tests.deploy.serve.helpers import KEY, PNG, model_file, picture, service

pytestmark = pytest.mark.anyio


def exchange(port: int, *pieces: bytes, pause: float = 0.0, wait: float = 10.0) -> bytes:
    """Send pieces with a pause between them, and return all that comes until the other side closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


def gone(processes: list[psutil.Process], seconds: float = 20.0) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not alive


HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"


def test_slow_endless_and_broken_connections_are_cut(net: Path) -> None:
    limits = {"idle_timeout_s": 0.4, "upload_timeout_s": 1.0, "header_timeout_s": 0.6, "max_bytes": 50_000}
    with service(net, **limits) as served, ThreadPoolExecutor(8) as pool:
        port = served.port
        silent = pool.submit(exchange, port)
        half_head = pool.submit(exchange, port, b"POST /v1/predict HTTP/1.1\r\nHos")
        trickled_head = pool.submit(exchange, port, *[b"GET / HTTP/1.1\r\nA: "[i : i + 1] for i in range(5)], pause=0.1)
        stopped = pool.submit(exchange, port, HEAD % 5000, bytes(100))
        trickled = pool.submit(exchange, port, HEAD % 5000, *[b"x"] * 6, pause=0.25)
        too_large = pool.submit(exchange, port, HEAD % 10**9, bytes(10_000))
        chunked = HEAD.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked")
        endless = pool.submit(exchange, port, chunked, *[b"%x\r\n%s\r\n" % (9000, bytes(9000))] * 8)
        nonsense = pool.submit(exchange, port, b"\x00\x01\x02 nonsense\r\n\r\n")
        assert silent.result() == half_head.result() == trickled_head.result() == b""
        for answer, status in ((stopped, 408), (trickled, 408), (too_large, 413), (endless, 413), (nonsense, 400)):
            assert answer.result().startswith(b"HTTP/1.1 %d " % status), answer.result()
        # A client that leaves in the middle of its body, or before its answer, disturbs nobody.
        for length in (5000, len(picture())):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(HEAD % length + picture())
        answer = httpx.post(f"{served.address}/v1/predict", content=picture(), headers=PNG)
        assert answer.status_code == 200
        metrics = httpx.get(f"{served.address}/metrics").text.splitlines()
        assert 'fullfield_connections_refused_total{why="header"} 3.0' in metrics
        assert "fullfield_held_bytes 0.0" in metrics


def test_connections_beyond_the_limit_get_a_503(net: Path) -> None:
    with service(net, max_connections=3) as served:
        held = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(3)]
        answer = exchange(served.port, HEAD % len(picture()), picture())
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1" in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "connections"
        for connection in held:
            connection.close()
        end = time.monotonic() + 20
        while httpx.get(f"{served.address}/health").status_code == 503:
            assert time.monotonic() < end
            time.sleep(0.05)


async def ask_many(address: str, count: int, *, connections: int) -> Counter[int]:
    """Send requests from so many clients at once; return how many got which status, 0 for a broken connection."""
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    told: Counter[int] = Counter()
    async with httpx.AsyncClient(limits=limits, timeout=120) as client:

        async def ask(number: int) -> None:
            try:
                answer = await client.post(f"{address}/v1/predict", content=picture(number % 256), headers=PNG)
                told[answer.status_code] += 1
            except httpx.TransportError:
                told[0] += 1

        await asyncio.gather(*(ask(number) for number in range(count)))
    return told


async def test_two_hundred_parallel_clients_all_get_an_answer(net: Path) -> None:
    with service(net, queue_size=1000) as served:
        assert await ask_many(served.address, 200, connections=200) == {200: 200}


@pytest.mark.slow
async def test_a_thousand_parallel_clients_all_get_an_answer_or_are_told_to_come_back(net: Path) -> None:
    with service(net, max_requests=2000, queue_size=2000) as served:
        assert await ask_many(served.address, 1000, connections=1000) == {200: 1000}
    with service(net, max_connections=800, queue_size=32) as served:
        told = await ask_many(served.address, 1000, connections=1000)
        assert set(told) == {200, 429, 503}, told
        assert told.total() == 1000
        assert await ask_many(served.address, 20, connections=4) == {200: 20}


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_under_load_loses_no_accepted_request(tmp_path: Path, sent: signal.Signals) -> None:
    net = model_file(tmp_path, delay_s=0.05)
    with service(net, queue_size=200) as served:
        workers = served.workers()
        assert len(workers) == 1
        told: Counter[str] = Counter()

        async def client(session: httpx.AsyncClient) -> None:
            """Ask one request after the other until the service can't be reached."""
            while True:
                try:
                    answer = await session.post(f"{served.address}/v1/predict", content=picture(), headers=PNG)
                except httpx.ConnectError:
                    return
                except httpx.TransportError:
                    # An idle connection that was closed as the next request set out. One that the service had taken
                    # is in its log, with the status 0.
                    return
                told[str(answer.status_code)] += 1

        async with httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=None)) as session:
            clients = [asyncio.create_task(client(session)) for _ in range(30)]
            await asyncio.sleep(0.5)
            os.kill(served.process.pid, sent)
            await asyncio.gather(*clients)
        assert await asyncio.to_thread(served.process.wait, 30) == 0
        assert set(told) == {"200"}, told
        logged = [line for line in served.lines() if line["event"] == "request"]
        assert Counter(str(line["status"]) for line in logged) == told  # what was taken was answered
        assert [line["event"] for line in served.lines()][-1] == "stopped"
        assert gone(workers)


async def test_what_takes_longer_than_the_limit_is_given_up_at_the_end(net: Path) -> None:
    with service(net, shutdown_timeout_s=1.0) as served:
        workers = served.workers()
        async with httpx.AsyncClient(timeout=30) as client:
            hanging = asyncio.create_task(
                client.post(f"{served.address}/v1/predict", content=picture(size=(ODD["hangs"], 9)), headers=PNG)
            )
            await asyncio.sleep(0.3)
            start = time.monotonic()
            served.process.terminate()
            assert await asyncio.to_thread(served.process.wait, 30) == 0
            assert time.monotonic() - start < 20
            result = (await asyncio.gather(hanging, return_exceptions=True))[0]
            assert isinstance(result, httpx.TransportError) or result.status_code >= 500
        assert gone(workers)


async def test_a_killed_service_leaves_no_worker_not_even_a_busy_one(net: Path) -> None:
    with service(net, workers=2) as served:
        workers = served.workers()
        assert len(workers) == 2
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            hang = picture(size=(ODD["hangs"], 9))
            connection.sendall(HEAD % len(hang) + hang)
            await asyncio.sleep(0.3)
            served.process.kill()
            assert gone(workers)


async def test_workers_killed_under_load_cost_503s_and_no_connection(tmp_path: Path) -> None:
    net = model_file(tmp_path, delay_s=0.05)
    with service(net, queue_size=400, workers=2) as served:
        asking = asyncio.create_task(ask_many(served.address, 160, connections=40))
        for _ in range(3):  # the second and third may hit one that has just been started
            await asyncio.sleep(0.15)
            for worker in served.workers()[:1]:
                worker.kill()
        told = await asking
        assert set(told) <= {200, 503}, told
        assert told[200] + told[503] == 160
        deaths = [line["exit_code"] for line in served.lines() if line["event"] == "worker_died"]
        assert 1 <= len(deaths) <= 3
        assert told[503] <= len(deaths) * 8, deaths  # each costs its batch and no more
        assert (await ask_many(served.address, 20, connections=4)) == {200: 20}


def test_logs_hold_nothing_that_a_client_sent(net: Path) -> None:
    mark = "ClientMark"
    with (
        service(net, keys=[KEY]) as served,
        httpx.Client(base_url=served.address, headers={"X-API-Key": KEY}) as client,
    ):
        marked = {"X-Mark": mark, "User-Agent": mark, "X-Request-ID": mark, "Referer": mark}
        good = client.post(f"/v1/predict?note={mark}", content=picture(), headers={**PNG, **marked})
        assert good.status_code == 200
        client.post("/v1/predict", files={"files": (f"{mark}.png", picture() + mark.encode(), "image/png")})
        client.post("/v1/predict", files={"files": (f"{mark}.png", picture()[:300] + mark.encode(), "image/png")})
        client.post("/v1/predict", content=mark.encode(), headers=PNG)
        client.post("/v1/predict", content=mark.encode(), headers={"Content-Type": f"image/{mark}"})
        client.post(f"/v1/models/{mark}/predict", content=picture(), headers=PNG)
        client.post(f"/v1/predict?top={mark}", content=picture(), headers=PNG)
        client.post("/v1/predict", content=picture(size=(ODD["raises"], 9)), headers=PNG)
        client.post("/v1/predict", content=picture(size=(ODD["dies"], 9)), headers=PNG)
        client.get(f"/{mark}", headers={"X-API-Key": mark})
        client.request(mark.upper(), f"/{mark}")
        exchange(served.port, f"{mark}\r\n\r\n".encode())
        metrics = client.get("/metrics").text
        expected = [200, 200, 422, 422, 415, 404, 422, 500, 503, 401, 404, 200]
        until = time.monotonic() + 20
        while len(requests := [line for line in served.lines() if line["event"] == "request"]) < len(expected):
            assert time.monotonic() < until, requests  # the line of a request may follow its answer
            time.sleep(0.05)
        text, lines = served.log.read_text(), served.lines()
    for secret in (mark, mark.upper(), SECRET, KEY):
        assert secret not in text
        assert secret not in metrics
    assert [line["status"] for line in requests] == expected
    first = requests[0]
    assert first["id"] == good.headers["X-Request-ID"]
    assert (first["method"], first["route"], first["model"]) == ("POST", "/v1/predict", "net")
    assert (first["batch"], first["images"], first["bytes"]) == (1, 1, len(picture()))
    assert first["ms"] >= first["queue_ms"] >= 0
    assert requests[-3]["route"] == requests[-2]["route"] == "unmatched"
    assert requests[-2]["method"] == "other"
    [fault] = [line for line in lines if line["event"] == "model_failed"]
    assert fault["trace"][0] == "RuntimeError"
    [died] = [line for line in lines if line["event"] == "worker_died"]
    assert died["exit_code"] == 7
