"""The images that wait for a model: a bounded queue, from which workers take batches."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Job", "JobQueue"]


@dataclass(eq=False)
class Job:
    """An image that waits for its answer.

    Attributes:
        data: The image file.
        item: What the worker needs to know: "name", "top", "threshold" and "mask".
        result: Gets the worker's result, or a `Refusal`.
        enqueued: When it began to wait, seconds of the monotonic clock.
        queue_ms: How long it waited; None while it does.
        batch: Images in its batch.
    """

    data: bytes
    item: dict[str, Any]
    result: asyncio.Future[dict[str, Any]]
    enqueued: float = field(default_factory=time.monotonic)
    queue_ms: float | None = None
    batch: int | None = None


class JobQueue:
    """A first-in, first-out queue with a bound; all workers of a model take from it.

    Args:
        limit: At most so many jobs wait.
        batch_size: At most so many are taken at once.
        batch_wait_s: So long the first job waits for others to come.
    """

    def __init__(self, limit: int, *, batch_size: int, batch_wait_s: float) -> None:
        self.limit, self.batch_size, self.batch_wait_s = limit, batch_size, batch_wait_s
        self._jobs: deque[Job] = deque()
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, jobs: Sequence[Job]) -> bool:
        """Add jobs and return True, or add none and return False if not all of them have room."""
        if len(self._jobs) + len(jobs) > self.limit:
            return False
        was_empty = not self._jobs
        self._jobs.extend(jobs)
        if was_empty or len(self._jobs) >= self.batch_size:
            self._changed.set()
        return True

    async def filled(self) -> None:
        """Wait until a batch is worth taking: it is full, or its first job has waited long enough."""
        while len(self._jobs) < self.batch_size:
            left = self._jobs[0].enqueued + self.batch_wait_s - time.monotonic() if self._jobs else None
            if left is not None and left <= 0:
                return
            # Several workers may wait: each clears the event before it waits, and looks at the jobs after it.
            self._changed.clear()
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def take(self) -> list[Job]:
        """Remove and return the jobs of a batch; none if another worker was faster."""
        now = time.monotonic()
        batch = [self._jobs.popleft() for _ in range(min(self.batch_size, len(self._jobs)))]
        for job in batch:
            job.queue_ms, job.batch = 1000 * (now - job.enqueued), len(batch)
        return batch

    def discard(self, jobs: Sequence[Job]) -> None:
        """Remove jobs that nobody waits for any more, so that they take no room."""
        gone = set(map(id, jobs))
        self._jobs = deque(job for job in self._jobs if id(job) not in gone)
