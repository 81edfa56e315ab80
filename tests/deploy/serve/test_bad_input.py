"""What clients send wrongly, too large or too often is refused with a status, a word and a sentence; nothing breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fullfield.deploy.serve.schemas import ErrorAnswer
from tests.deploy.serve.fake import ODD, SECRET
from tests.deploy.serve.helpers import KEY, PNG, app_of, bomb, model_file, picture, running, settings

pytestmark = pytest.mark.anyio


def refused(answer: httpx.Response) -> tuple[int, str]:
    """Return status and word of a refusal, whose form is checked."""
    error = ErrorAnswer.model_validate(answer.json()).error
    assert error.request_id == answer.headers["X-Request-ID"]
    if answer.status_code in (429, 503):
        assert int(answer.headers["Retry-After"]) >= 1
    return answer.status_code, error.code


async def test_what_is_no_image_is_refused_with_a_sentence_and_the_others_go_on(net: Path) -> None:
    bad = {
        "is not a JPEG, PNG": b"not an image",
        "is empty": b"",
        "is damaged or cut off": picture()[:500],
        "more than the limit of 50,000,000 pixels": bomb(),
        "header is damaged": b"\xff\xd8\xff" + bytes(50),
    }
    async with running(settings(net)) as client:
        for says, data in bad.items():
            answer = await client.post("/v1/predict", content=data, headers=PNG)
            assert refused(answer) == (422, "image")
            assert answer.json()["error"]["message"].startswith("image 1: ")
            assert says in answer.json()["error"]["message"]
        files = [("files", ("secret.png", data, "image/png")) for data in (picture(), picture()[:500])]
        answer = await client.post("/v1/predict", files=files)
        assert refused(answer) == (422, "image")
        assert answer.json()["error"]["image"] == 2
        together = [
            client.post("/v1/predict", content=data, headers=PNG) for data in (b"no", picture(), b"", picture())
        ]
        assert [one.status_code for one in await asyncio.gather(*together)] == [422, 200, 422, 200]


async def test_images_that_the_model_cannot_answer_do_not_cost_the_others(net: Path) -> None:
    async with running(settings(net, batch_size=5, batch_wait_ms=10_000)) as client:
        widths = [ODD["raises"], 32, ODD["refuses"], ODD["not finite"], 32]
        answers = await asyncio.gather(
            *(client.post("/v1/predict", content=picture(size=(w, 20)), headers=PNG) for w in widths)
        )
        batches = app_of(client).state.serving.metrics.registry.get_sample_value(
            "fullfield_batch_images_count", {"model": "net"}
        )
    assert batches == 1
    assert [answer.status_code for answer in answers] == [500, 200, 422, 500, 200]
    assert [refused(answers[i])[1] for i in (0, 2, 3)] == ["failed", "image", "not_finite"]
    assert answers[2].json()["error"]["message"] == "the image is of a width that this net refuses"
    assert SECRET not in answers[0].text


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "content_type"),
        ({"Content-Type": "text/plain"}, "content_type"),
        ({"Content-Type": "application/json"}, "content_type"),
        ({"Content-Type": "image/svg+xml"}, "content_type"),
        ({"Content-Type": "image/png", "Content-Encoding": "gzip"}, "content_encoding"),
    ],
)
async def test_other_content_types_are_refused(net: Path, headers: dict[str, str], code: str) -> None:
    async with running(settings(net), wait=False) as client:
        assert refused(await client.post("/v1/predict", content=picture(), headers=headers)) == (415, code)


async def test_forms_that_are_not_files_of_images_are_refused(net: Path) -> None:
    one = ("a.png", picture(), "image/png")
    form = "multipart/form-data; boundary=b"
    part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    async with running(settings(net, max_images=2)) as client:

        async def ask(**sent: Any) -> tuple[int, str]:
            return refused(await client.post("/v1/predict", **sent))

        async def raw(body: bytes, kind: str = form) -> tuple[int, str]:
            return await ask(content=body, headers={"Content-Type": kind})

        assert await ask(files=[("files", one)] * 3) == (422, "too_many")
        assert await ask(files=[("image", one)]) == (422, "form")
        assert await ask(files=[("files", one)], data={"top": "3"}) == (422, "form")
        assert await ask(files=[("files", ("a.txt", b"x", "text/plain"))]) == (415, "content_type")
        assert await raw(b"", "multipart/form-data") == (400, "form")
        assert await raw(b"") == (400, "form")
        assert await raw(b"no form") == (400, "form")
        assert await raw(part + picture()) == (400, "form")  # cut off
        assert await raw(b"--b--\r\n") == (422, "form")
        assert await raw(part[:20] + b"x" * 20_000 + part[20:]) == (400, "form")
        assert await raw(part + b"\r\n--b--\r\n") == (422, "image")


async def test_a_file_of_a_form_needs_a_type_or_a_name(net: Path) -> None:
    async with running(settings(net)) as client:
        for of_it, status in (
            (b'; filename="a"', 200),
            (b'; filename=""\r\nContent-Type: application/octet-stream', 200),
            (b"\r\nContent-Type: image/png", 200),
            (b"", 422),
        ):
            head = b'--b\r\nContent-Disposition: form-data; name="files"' + of_it + b"\r\n\r\n"
            form = {"Content-Type": "multipart/form-data; boundary=b"}
            answer = await client.post("/v1/predict", content=head + picture() + b"\r\n--b--\r\n", headers=form)
            assert answer.status_code == status, of_it


@pytest.mark.parametrize("query", ["top=0", "top=1001", "top=x", "threshold=2", "threshold=nan", "mask=gif"])
async def test_wrong_parameters_are_refused(net: Path, query: str) -> None:
    async with running(settings(net), wait=False) as client:
        answer = await client.post(f"/v1/predict?{query}", content=picture(), headers=PNG)
    assert refused(answer) == (422, "parameter")
    assert answer.json()["error"]["message"].startswith(query.partition("=")[0])


async def test_unknown_addresses_and_methods_are_refused_in_the_same_form(net: Path) -> None:
    async with running(settings(net), wait=False) as client:
        assert refused(await client.get("/v2/predict")) == (404, "http")
        assert refused(await client.post("/v1/predict/", content=b"", headers=PNG)) == (404, "http")
        answer = await client.get("/v1/predict")
    assert refused(answer) == (405, "http")
    assert answer.headers["Allow"] == "POST"


async def test_a_body_beyond_the_limit_is_refused_before_it_is_read(net: Path) -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1000
            await asyncio.sleep(0)
            yield bytes(1000)

    async with running(settings(net, max_bytes=10_000)) as client:
        declared = await client.post("/v1/predict", content=bytes(10_001), headers=PNG)
        # The connection that brings an endless body is read for a second more, and closed.
        counted = await asyncio.wait_for(client.post("/v1/predict", content=endless(), headers=PNG), 10)
        assert app_of(client).state.serving.held.count == 0
    assert refused(declared) == refused(counted) == (413, "too_large")
    assert counted.headers["Connection"] == "close"
    assert read > 10_000


async def test_a_full_queue_refuses_with_retry_after(tmp_path: Path) -> None:
    net = model_file(tmp_path, delay_s=0.3)
    async with running(settings(net, queue_size=4, max_images=4, batch_size=2, batch_wait_ms=0)) as client:
        answers = await asyncio.gather(*(client.post("/v1/predict", content=picture(), headers=PNG) for _ in range(12)))
        answered = sum(answer.status_code == 200 for answer in answers)
        assert 4 <= answered < 12
        assert {refused(a) for a in answers if a.status_code != 200} == {(429, "queue_full")}
        # Later there is room again.
        assert (await client.post("/v1/predict", content=picture(), headers=PNG)).status_code == 200


async def test_more_requests_and_bytes_than_the_limits_are_refused(tmp_path: Path) -> None:
    net, data = model_file(tmp_path, delay_s=0.2), picture(size=(100, 100))
    for changes, code in (
        ({"max_requests": 2}, "requests"),
        ({"max_bytes": 50_000, "max_held_bytes": 50_000}, "memory"),
    ):
        async with running(settings(net, **changes)) as client:
            answers = await asyncio.gather(*(client.post("/v1/predict", content=data, headers=PNG) for _ in range(6)))
            told = [refused(answer) for answer in answers if answer.status_code != 200]
            assert 0 < len(told) < 6
            assert set(told) == {(429, code)}


async def test_an_answer_that_takes_too_long_is_a_504_and_leaves_the_queue(tmp_path: Path) -> None:
    net = model_file(tmp_path, delay_s=0.4)
    async with running(settings(net, request_timeout_s=0.2, batch_size=1)) as client:
        answers = await asyncio.gather(*(client.post("/v1/predict", content=picture(), headers=PNG) for _ in range(3)))
        assert [refused(answer) for answer in answers] == [(504, "timeout")] * 3
        assert len(app_of(client).state.serving.services["net"].queue) == 0


async def test_keys_are_needed_for_all_but_the_probes(net: Path) -> None:
    async with running(settings(net, keys=(KEY, "x" * 24))) as client:
        for sent in (
            {},
            {"X-API-Key": KEY[:-1]},
            {"Authorization": f"Bearer {KEY}x"},
            {"Authorization": "Basic %%%"},
            {"Authorization": f"Digest {KEY}", "X-API-Key": KEY},
        ):
            answer = await client.post("/v1/predict", content=picture(), headers={**PNG, **sent})
            assert refused(answer) == (401, "key")
            assert "Bearer" in answer.headers["WWW-Authenticate"]
            assert (await client.get("/metrics", headers=sent)).status_code == 401
            assert (await client.get("/nowhere", headers=sent)).status_code == 401
        basic = httpx.BasicAuth("anyone", KEY)._auth_header
        for sent in ({"X-API-Key": KEY}, {"Authorization": f"bearer {'x' * 24}"}, {"Authorization": basic}):
            answer = await client.post("/v1/predict", content=picture(), headers={**PNG, **sent})
            assert answer.status_code == 200
        for path in ("/health", "/ready", "/openapi.json", "/docs"):
            assert (await client.get(path)).status_code == 200
