"""A worker process as the event loop sees it: started, asked, watched and stopped."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from fullfield.deploy.serve.wire import frame, receive_frame
from fullfield.errors import CheckpointError

__all__ = ["WorkerDied", "WorkerProcess"]

# The child gets this process's sys.path, and not the folder that it happens to run in. None in sys.modules makes an
# import fail as if the library were not installed.
_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]);"
    " sys.modules.update(dict.fromkeys(json.loads(sys.argv[2])));"
    " from fullfield.deploy.serve.worker import main; main()"
)
_WITHOUT_TORCH = (".onnx", ".xml")


class WorkerDied(Exception):  # noqa: N818 - an event
    """The process ended, hung or spoke nonsense; the argument is a word or two for the log."""


class WorkerProcess:
    """One worker; `start` makes it.

    Attributes:
        about: What the worker tells of its model.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._stdin = cast("asyncio.StreamWriter", process.stdin)
        self._stdout = cast("asyncio.StreamReader", process.stdout)
        self.about: dict[str, Any] = {}
        self.exited = asyncio.ensure_future(process.wait())

    @classmethod
    async def start(cls, load: dict[str, Any], *, timeout_s: float) -> WorkerProcess:
        """Start a process and wait until it has loaded its model.

        Args:
            load: "factory", "source", "device", "threads", "pretrained" and "max_pixels".
            timeout_s: It is stopped if it takes longer.

        Raises:
            CheckpointError: The model can't be loaded; the message is the worker's.
            WorkerDied: It ended without a word, or took too long.
        """
        # Where PyTorch is installed, `import fullfield` loads it; a worker without it starts far sooner and is small.
        unneeded = ["torch"] if Path(load["source"]).suffix.lower() in _WITHOUT_TORCH else []
        # -P: nothing is imported from the folder that the service runs in. A session of its own keeps Ctrl-C away.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-c", _START, json.dumps(sys.path), json.dumps(unneeded)),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            start_new_session=True,
        )
        worker = cls(process)
        try:
            header = await worker._exchange(frame(load), timeout_s)
        except BaseException:
            await worker.stop()
            raise
        if "failed" in header:
            await worker.stop()
            raise CheckpointError(header["failed"])
        worker.about = header.get("ready", {})
        return worker

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    async def ask(
        self, items: Sequence[dict[str, Any]], blobs: Sequence[bytes], *, timeout_s: float
    ) -> list[dict[str, Any]]:
        """Have a batch answered, as `worker.Answerer.answer` says; one at a time.

        Raises:
            WorkerDied: It ended, or took too long; then it was stopped.
        """
        header = await self._exchange(frame({"items": list(items)}, blobs), timeout_s)
        results: list[dict[str, Any]] = header.get("results", [])
        if len(results) != len(items):
            raise WorkerDied("nonsense")
        return results

    async def stop(self) -> int:
        """End the process at once and return its exit code."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                if sys.platform == "win32":
                    self._process.kill()
                else:
                    # Process.kill asks first whether the process has ended, and if so takes the exit code away from
                    # asyncio, which waits for it and would report 255 (cpython issue 87744).
                    os.kill(self.pid, signal.SIGKILL)
        code = await self.exited
        # Otherwise the pipe's transport is closed by the garbage collector, perhaps after the loop.
        self._process._transport.close()  # type: ignore[attr-defined]
        return code

    async def _exchange(self, pieces: list[bytes], timeout_s: float) -> dict[str, Any]:
        try:
            async with asyncio.timeout(timeout_s):
                self._stdin.writelines(pieces)
                await self._stdin.drain()
                header, _ = await receive_frame(self._stdout)
                return header
        except TimeoutError as error:
            raise WorkerDied(f"no answer in {timeout_s:g} s") from error
        except (EOFError, OSError, ValueError) as error:
            raise WorkerDied("ended") from error
