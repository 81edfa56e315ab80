"""What a client gets is what the predictor says, alone and in batches, for every task and every way of sending."""

from __future__ import annotations

import asyncio
import base64
import io
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from fullfield.data.image import decode_image
from fullfield.deploy.serve.schemas import ModelList, PredictAnswer
from tests.deploy.serve.fake import CLASSES, COLOURS, ODD, FakePredictor
from tests.deploy.serve.helpers import PNG, app_of, model_file, picture, running, settings, until

pytestmark = pytest.mark.anyio


def labels_of(file: Path, data: bytes, top: int = 5) -> list[dict[str, object]]:
    """What the predictor itself says, without the service."""
    [prediction] = FakePredictor(str(file)).answer([decode_image(data, "x")], ["x"], top=top)
    return [{"class": name, "probability": share} for name, share in prediction.labels]


async def test_one_image_as_the_body_is_answered_as_the_predictor_answers_it(net: Path) -> None:
    async with running(settings(net)) as client:
        for grey, form, kind in ((10, "PNG", "png"), (120, "JPEG", "jpeg"), (240, "WEBP", "webp")):
            data = picture(grey, form=form)
            answer = await client.post("/v1/predict", content=data, headers={"Content-Type": f"image/{kind}"})
            assert answer.status_code == 200, answer.text
            expected = {"model": "net", "task": "classify", "answers": [{"labels": labels_of(net, data)}]}
            assert answer.json() == expected
            PredictAnswer.model_validate(answer.json())


async def test_files_of_a_form_are_answered_in_order(net: Path) -> None:
    sent = [picture(grey) for grey in (0, 250, 128, 60)]
    async with running(settings(net)) as client:
        files = [("files", (f"{i}.png", data, "image/png")) for i, data in enumerate(sent)]
        answer = await client.post("/v1/models/net/predict?top=1", files=files)
    assert answer.status_code == 200, answer.text
    assert [one["labels"] for one in answer.json()["answers"]] == [labels_of(net, data, 1) for data in sent]


async def test_requests_that_come_together_become_batches_and_each_gets_its_own_answer(tmp_path: Path) -> None:
    net = model_file(tmp_path, delay_s=0.05)
    sent = [picture(grey) for grey in range(0, 240, 10)]
    async with running(settings(net, batch_size=8, batch_wait_ms=10_000)) as client:

        async def ask(number: int) -> httpx.Response:
            return await client.post(f"/v1/predict?top={1 + number % 3}", content=sent[number], headers=PNG)

        answers = await asyncio.gather(*(ask(number) for number in range(len(sent))))
        metrics = app_of(client).state.serving.metrics.registry
        batches = metrics.get_sample_value("fullfield_batch_images_count", {"model": "net"})
        images = metrics.get_sample_value("fullfield_batch_images_sum", {"model": "net"})
    for number, answer in enumerate(answers):
        assert answer.json()["answers"] == [{"labels": labels_of(net, sent[number], 1 + number % 3)}]
    assert images == len(sent)
    assert batches == 3


async def test_a_single_image_waits_no_longer_than_the_wait(net: Path) -> None:
    async with running(settings(net, batch_wait_ms=1500)) as client:
        loop = asyncio.get_running_loop()
        start = loop.time()
        assert (await client.post("/v1/predict", content=picture(), headers=PNG)).status_code == 200
        assert loop.time() - start >= 1.49
        start = loop.time()
        files = [("files", ("a.png", picture(), "image/png"))] * 8
        assert (await client.post("/v1/predict", files=files)).status_code == 200
        assert loop.time() - start < 1.4  # a full batch does not wait


async def test_a_detectors_objects_are_cut_at_each_requests_threshold(tmp_path: Path) -> None:
    net = model_file(tmp_path, "detect")
    async with running(settings(net, batch_wait_ms=50)) as client:

        async def ask(query: str) -> dict[str, object]:
            answer = await client.post(f"/v1/predict?{query}", content=picture(), headers=PNG)
            PredictAnswer.model_validate(answer.json())
            [found] = answer.json()["answers"]
            return found

        few, many = await asyncio.gather(ask("threshold=0.5"), ask("threshold=0&mask=rle"))
    box = [0.0, 0.0, 32.0, 24.0]
    assert few == {
        "size": {"width": 32, "height": 24},
        "detections": [{"class": "light", "score": 0.9, "box": box}],
    }
    assert many["detections"] == [
        {"class": "light", "score": 0.9, "box": box, "mask": {"size": [24, 32], "counts": "abc"}},
        {"class": "dark", "score": 0.2, "box": box, "mask": None},
    ]


async def test_a_segmenter_gives_shares_and_on_request_its_label_map(tmp_path: Path) -> None:
    net, data = model_file(tmp_path, "segment"), picture(170, (40, 20))
    [expected] = FakePredictor(str(net)).answer([decode_image(data, "x")], ["x"])
    async with running(settings(net)) as client:
        plain = (await client.post("/v1/predict", content=data, headers=PNG)).json()["answers"][0]
        asked = (await client.post("/v1/predict?mask=png", content=data, headers=PNG)).json()
    PredictAnswer.model_validate(asked)
    assert plain == {
        "size": {"width": 40, "height": 20},
        "shares": [{"class": name, "share": share} for name, share in expected.shares],
    }
    with Image.open(io.BytesIO(base64.b64decode(asked["answers"][0]["mask"]))) as mask:
        assert np.array_equal(np.asarray(mask), expected.labels)
        assert mask.getpalette()[:9] == [value for colour in COLOURS for value in colour]


async def test_several_models_are_told_and_asked_by_name(tmp_path: Path) -> None:
    files = [model_file(tmp_path, "classify", name="first"), model_file(tmp_path, "detect", name="second")]
    async with running(settings(*files)) as client:
        told = (await client.get("/v1/models")).json()
        by_name = (await client.post("/v1/models/second/predict", content=picture(), headers=PNG)).json()
        default = (await client.post("/v1/predict", content=picture(), headers=PNG)).json()
        missing = await client.post("/v1/models/third/predict", content=picture(), headers=PNG)
    ModelList.model_validate(told)
    assert [(row["name"], row["task"], row["default"]) for row in told["models"]] == [
        ("first", "classify", True),
        ("second", "detect", False),
    ]
    assert told["models"][0]["classes"] == list(CLASSES)
    assert told["models"][0]["engine"] == "a fake on CPU"
    assert (default["model"], by_name["model"], by_name["task"]) == ("first", "second", "detect")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model")


async def test_where_one_of_two_workers_is_busy_the_other_answers(net: Path) -> None:
    async with running(settings(net, workers=2, batch_size=1)) as client:
        hang = picture(size=(ODD["hangs"], 9))
        hanging = asyncio.create_task(client.post("/v1/predict", content=hang, headers=PNG))
        metrics = app_of(client).state.serving.metrics.registry
        await until(lambda: metrics.get_sample_value("fullfield_batch_images_count", {"model": "net"}) == 1)
        for _ in range(3):
            assert (await client.post("/v1/predict", content=picture(), headers=PNG)).status_code == 200
        assert not hanging.done()
        hanging.cancel()


async def test_metrics_docs_and_openapi_need_nothing_from_elsewhere(net: Path) -> None:
    async with running(settings(net)) as client:
        await client.post("/v1/predict", content=picture(), headers=PNG)
        metrics = await client.get("/metrics")
        docs = await client.get("/docs")
        openapi = (await client.get("/openapi.json")).json()
    line = 'fullfield_requests_total{model="net",route="/v1/predict",status="200"} 1.0'
    assert line in metrics.text.splitlines()
    assert "/v1/models/{name}/predict" in docs.text
    assert "http://" not in docs.text.replace("http://HOST", "")
    assert "https://" not in docs.text
    assert "<script" not in docs.text
    assert set(openapi["paths"]) == {
        *("/v1/predict", "/v1/models/{name}/predict", "/v1/models", "/health", "/ready", "/metrics"),
    }
