"""A model in service: its queue, its workers, and what becomes of them.

A worker that ends is started again, at once the first time and then ever later, but only from the very files that the
service started with.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fullfield.deploy.serve.batching import Job, JobQueue
from fullfield.deploy.serve.fingerprint import changed, fingerprint
from fullfield.deploy.serve.logs import event
from fullfield.deploy.serve.metrics import Metrics
from fullfield.deploy.serve.process import WorkerDied, WorkerProcess
from fullfield.deploy.serve.refusal import Refusal, busy
from fullfield.deploy.serve.settings import ServedModel, ServeSettings
from fullfield.errors import CheckpointError

__all__ = ["ModelService"]

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0


class ModelService:
    """Answers images with the workers of one model.

    Attributes:
        about: What the model's worker tells of it; empty until one has loaded it.
        failure: Why the model can't be loaded: it never could, or its files have changed.
    """

    def __init__(self, model: ServedModel, settings: ServeSettings, metrics: Metrics) -> None:
        self.model, self.settings, self.metrics = model, settings, metrics
        self.about: dict[str, Any] = {}
        self.failure: str | None = None
        self.queue = JobQueue(
            settings.queue_size, batch_size=settings.batch_size, batch_wait_s=settings.batch_wait_ms / 1000
        )
        self.settled = asyncio.Event()
        """Set when every worker has loaded the model, or one can't."""
        self._files: dict[str, str] | None = None
        self._lock = asyncio.Lock()
        self._workers: dict[int, WorkerProcess] = {}
        self._tasks: list[asyncio.Task[None]] = []
        metrics.waiting.labels(model.name).set_function(lambda: len(self.queue))
        metrics.workers.labels(model.name).set_function(lambda: len(self._workers))

    @property
    def ready(self) -> bool:
        """Whether a worker has the model, and another could be started."""
        return bool(self._workers) and self.failure is None

    @property
    def state(self) -> str:
        """In a word or a sentence, for /ready."""
        if self.failure is not None:
            return f"refused: {self.failure}"
        return "ready" if self._workers else "restarting" if self.about else "loading"

    def start(self) -> None:
        """Begin to load the model; returns at once."""
        self._tasks = [asyncio.create_task(self._keep_worker(index)) for index in range(self.settings.workers)]

    async def stop(self) -> None:
        """End all workers; what still waits is refused."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while jobs := self.queue.take():
            _refuse(jobs, busy("stopping", "The service is being stopped.", status=503))

    def check(self, images: int = 1) -> None:
        """Refuse what could not be taken now, before it is read.

        Raises:
            Refusal: The model is not there (503), or the queue is full (429).
        """
        if not self._workers and (self.failure is not None or not self.about):
            raise busy("not_ready", f"The model {self.model.name} is not ready: {self._why_not()}", status=503)
        if len(self.queue) + images > self.queue.limit:
            raise self._full()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Let images wait for their answers.

        Raises:
            Refusal: As `check`.
        """
        self.check(len(jobs))
        if not self.queue.put(jobs):
            raise self._full()

    def _why_not(self) -> str:
        # The reason names files of this machine, which the log tells, and a client need not know.
        return "it can't be loaded." if self.failure is not None else "it is being loaded."

    def _full(self) -> Refusal:
        return busy("queue_full", f"{self.queue.limit} images wait already; ask again a little later.")

    async def _keep_worker(self, index: int) -> None:
        """Start a worker, let it work, and start it again when it ends."""
        in_vain = 0  # starts in a row after which no batch was answered
        while True:
            if in_vain:
                await asyncio.sleep(min(FIRST_PAUSE_S * 2 ** min(in_vain - 1, 10), LONGEST_PAUSE_S))
            in_vain += 1
            worker = await self._load(index)
            if worker is None:
                continue
            try:
                async for _ in self._batches(worker):
                    in_vain = 0
            except WorkerDied as error:
                reason = str(error)
            finally:
                self._workers.pop(index, None)
                code = await asyncio.shield(worker.stop())
            self._count_death(worker.pid, code, reason)

    def _count_death(self, pid: int | None, exit_code: int | None, reason: str) -> None:
        self.metrics.deaths.labels(self.model.name).inc()
        event(logging.ERROR, "worker_died", model=self.model.name, pid=pid, exit_code=exit_code, reason=reason)

    async def _load(self, index: int) -> WorkerProcess | None:
        """Return a worker that has loaded the model from the files of the start, or None."""
        try:
            await self._check_files()
            worker = await WorkerProcess.start(self._load_settings(), timeout_s=self.settings.load_timeout_s)
            try:
                await self._check_files()  # they may have been swapped while the model was loaded
            except BaseException:
                await asyncio.shield(worker.stop())
                raise
        except (CheckpointError, WorkerDied, OSError) as error:
            if self.about and self.settled.is_set() and not isinstance(error, CheckpointError):
                # The model was loaded before: a process failed, not the model. Requests go on waiting for the next one.
                self._count_death(None, None, f"{error}, while it loaded the model")
                return None
            sentence = f"its worker {error}" if isinstance(error, WorkerDied) else str(error)
            if self.failure != sentence:  # once, and not at every attempt
                event(logging.ERROR, "model_refused", model=self.model.name, reason=sentence)
            self.failure = sentence
            self.settled.set()
            return None
        self.failure = None
        self.about = worker.about
        self._workers[index] = worker
        event(
            logging.INFO, "worker_ready", model=self.model.name, pid=worker.pid, engine=worker.about.get("engine")
        )  # fmt: skip
        if len(self._workers) == self.settings.workers:
            self.settled.set()
        return worker

    async def _check_files(self) -> None:
        async with self._lock:
            now = await asyncio.to_thread(fingerprint, self.model.source)
            if self._files is None:
                self._files = now
                for file, digest in now.items():
                    event(logging.INFO, "model_file", model=self.model.name, file=file, sha256=digest)
            reason = changed(self._files, now)
            if reason is not None:
                raise CheckpointError(reason)

    def _load_settings(self) -> dict[str, Any]:
        settings = self.settings
        processes = settings.workers * len(settings.models)
        return {
            "factory": settings.factory,
            "source": self.model.source,
            "device": settings.device,
            "threads": settings.threads or max(1, (os.cpu_count() or 1) // processes),
            "pretrained": settings.pretrained,
            "max_pixels": settings.max_pixels,
        }

    async def _batches(self, worker: WorkerProcess) -> AsyncIterator[int]:
        """Have a worker answer one batch after the other; yield the size of each.

        Raises:
            WorkerDied: It ended. The images of its batch were refused; those that wait go on waiting.
        """
        while True:
            filled = asyncio.ensure_future(self.queue.filled())
            try:
                await asyncio.wait({filled, worker.exited}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                filled.cancel()
            if worker.exited.done():
                raise WorkerDied("ended while it waited")
            jobs = self.queue.take()
            if not jobs:
                continue  # another worker was faster
            try:
                results = await self._ask(worker, jobs)
            except WorkerDied as error:
                _refuse(jobs, busy("worker_died", "The model's process died over this batch; ask again.", status=503))
                raise WorkerDied(f"{error}, over a batch of {len(jobs)}") from error
            except BaseException:
                _refuse(jobs, busy("stopping", "The service is being stopped.", status=503))
                raise
            for job, result in zip(jobs, results, strict=True):
                self._hand_over(job, result)
            yield len(jobs)

    async def _ask(self, worker: WorkerProcess, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        name, start = self.model.name, time.monotonic()
        self.metrics.batch_size.labels(name).observe(len(jobs))
        for job in jobs:
            self.metrics.queue_seconds.labels(name).observe((job.queue_ms or 0) / 1000)
        items, blobs = [job.item for job in jobs], [job.data for job in jobs]
        results = await worker.ask(items, blobs, timeout_s=self.settings.batch_timeout_s)
        self.metrics.batch_seconds.labels(name).observe(time.monotonic() - start)
        return results

    def _hand_over(self, job: Job, result: dict[str, Any]) -> None:
        status = 200 if "answer" in result else result["status"]
        self.metrics.images.labels(self.model.name, str(status)).inc()
        if "fault" in result:
            event(logging.ERROR, "model_failed", model=self.model.name, trace=result["fault"])
        if not job.result.done():
            job.result.set_result(result)


def _refuse(jobs: Sequence[Job], refusal: Refusal) -> None:
    for job in jobs:
        if not job.result.done():
            job.result.set_exception(refusal)
            job.result.exception()  # seen: a client may have left, and asyncio would complain
