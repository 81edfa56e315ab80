"""Exported files behind the service, run by ONNX Runtime: its answers are those of `Predictor`, in batches too."""

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
from fullfield.deploy.predictor import Predictor
from fullfield.deploy.serve.schemas import ModelList, PredictAnswer
from tests.deploy.serve.helpers import PNG, picture, service
from tests.deploy.small_files import CLASSES, write_small

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.anyio

TASKS = ("classify", "detect", "segment")


async def test_answers_over_http_are_the_predictors_for_every_task(tmp_path: Path) -> None:
    files = [write_small(tmp_path, task).onnx for task in TASKS]
    sent = [picture(grey, size) for grey, size in ((30, (64, 48)), (120, (50, 70)), (220, (96, 96)))]
    images = [decode_image(data, "x") for data in sent]
    # Three requests fill a batch, so that none of them waits.
    made = {"factory": "fullfield.deploy.predictor:Predictor", "threads": 1, "batch_size": 3, "batch_wait_ms": 5000}
    with service(*files, **made) as served:
        async with httpx.AsyncClient(base_url=served.address, timeout=60) as client:

            async def ask(task: str, query: str) -> list[dict[str, object]]:
                address = f"/v1/models/{task}/predict?{query}"
                answers = await asyncio.gather(*(client.post(address, content=data, headers=PNG) for data in sent))
                for answer in answers:
                    assert answer.status_code == 200, answer.text
                    PredictAnswer.model_validate(answer.json())
                return [answer.json()["answers"][0] for answer in answers]

            told = ModelList.model_validate((await client.get("/v1/models")).json())
            labels = await ask("classify", "top=2")
            objects = await ask("detect", "threshold=0.5")
            shares = await ask("segment", "mask=png")
    assert [(row.task, row.classes, row.ready) for row in told.models] == [(task, [*CLASSES], True) for task in TASKS]
    assert all(str(row.engine).startswith("ONNX Runtime ") for row in told.models)

    for got, expected in zip(labels, Predictor(files[0], threads=1).answer(images, top=2), strict=True):
        assert [one["class"] for one in got["labels"]] == [name for name, _ in expected.labels]
        assert [one["probability"] for one in got["labels"]] == pytest.approx([p for _, p in expected.labels], abs=1e-6)
    found = Predictor(files[1], threads=1).answer(images, threshold=0.5)
    assert any(one.detections for one in found)
    for got, expected in zip(objects, found, strict=True):
        assert [one["class"] for one in got["detections"]] == [one.name for one in expected.detections]
        for one, other in zip(got["detections"], expected.detections, strict=True):
            assert one["box"] == pytest.approx(other.box, abs=1e-3)
            assert one["score"] == pytest.approx(other.score, abs=1e-6)
    for got, expected in zip(shares, Predictor(files[2], threads=1).answer(images), strict=True):
        with Image.open(io.BytesIO(base64.b64decode(got["mask"]))) as mask:
            assert np.array_equal(np.asarray(mask), expected.labels)
        assert {one["class"]: one["share"] for one in got["shares"]} == pytest.approx(dict(expected.shares))
