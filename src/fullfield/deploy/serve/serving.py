"""What one application holds: its models, its counts, and the way of a request through them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request

from fullfield.deploy.serve.batching import Job
from fullfield.deploy.serve.limits import Body, HeldBytes
from fullfield.deploy.serve.logs import RequestRecord
from fullfield.deploy.serve.metrics import Metrics
from fullfield.deploy.serve.refusal import Refusal, busy
from fullfield.deploy.serve.service import ModelService
from fullfield.deploy.serve.settings import ServeSettings
from fullfield.deploy.serve.uploads import MULTIPART, body_kind, read_form, read_image_body

__all__ = ["Serving"]


class Serving:
    """The state behind an application's endpoints.

    Attributes:
        stopping: Set when the service is being stopped.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.services = {model.name: ModelService(model, settings, self.metrics) for model in settings.models}
        self.held = HeldBytes(settings.max_held_bytes, self.metrics)
        self.stopping = False
        self._requests = 0

    async def predict(self, name: str, request: Request, options: dict[str, Any]) -> dict[str, Any]:
        """Answer the images of a request.

        Args:
            name: Of a model.
            request: Its body is read here.
            options: "top", "threshold" and "mask".

        Raises:
            Refusal: Why it is not answered.
        """
        record: RequestRecord = request.scope["state"]["record"]
        service = self.services.get(name)
        if service is None:
            raise Refusal(404, "model", "There is no such model; GET /v1/models lists them.")
        record.model = name
        content_type = request.headers.get("content-type", "")
        kind = body_kind(content_type, request.headers.get("content-encoding", ""))
        if self._requests >= self.settings.max_requests:
            raise busy("requests", f"{self._requests} requests are being answered; ask again a little later.")
        service.check()
        self._requests += 1
        try:
            with Body(request, self.settings, self.held) as body:
                try:
                    if kind == MULTIPART:
                        images = await read_form(body.pieces(), content_type, max_images=self.settings.max_images)
                    else:
                        images = await read_image_body(body.pieces())
                finally:
                    record.bytes = body.size
                    self.metrics.bytes.labels(name).inc(body.size)
                record.images = len(images)
                answers = await self._answers(service, images, request, options)
        finally:
            self._requests -= 1
        return {"model": name, "task": service.about["task"], "answers": answers}

    async def _answers(
        self, service: ModelService, images: Sequence[bytes], request: Request, options: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Put images into the queue and wait for all of them, as long as the client does."""
        loop = asyncio.get_running_loop()
        jobs = [
            Job(data, {**options, "name": f"image {number}"}, loop.create_future())
            for number, data in enumerate(images, start=1)
        ]
        service.submit(jobs)
        record: RequestRecord = request.scope["state"]["record"]
        together = asyncio.gather(*(job.result for job in jobs))
        left = asyncio.ensure_future(_disconnected(request))
        awaited: set[asyncio.Future[Any]] = {together, left}
        try:
            seconds = self.settings.request_timeout_s
            await asyncio.wait(awaited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not together.done():
                if left.done():
                    raise Refusal(499, "disconnected", "The client left.")
                raise Refusal(504, "timeout", f"The answer took longer than {seconds:g} s.")
            return [_answer(number, result) for number, result in enumerate(together.result(), start=1)]
        finally:
            left.cancel()
            together.cancel()
            service.queue.discard([job for job in jobs if job.batch is None])
            record.batch = max((job.batch for job in jobs if job.batch), default=None)
            record.queue_ms = max((job.queue_ms for job in jobs if job.queue_ms is not None), default=None)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _answer(number: int, result: dict[str, Any]) -> dict[str, Any]:
    if "answer" in result:
        answer: dict[str, Any] = result["answer"]
        return answer
    headers = {"Retry-After": "1"} if result["status"] == 503 else {}
    raise Refusal(result["status"], result["code"], result["message"], image=number, headers=headers)
