"""Start the service, and stop it so that everything it took is answered."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import uvicorn
from fastapi import FastAPI

from fullfield.deploy.serve.app import create_app
from fullfield.deploy.serve.logs import event, logging_to
from fullfield.deploy.serve.protocol import limited_protocol
from fullfield.deploy.serve.serving import Serving
from fullfield.deploy.serve.settings import ServeSettings
from fullfield.errors import CheckpointError, RunError

__all__ = ["listen", "serve"]

LAST_CALL_S = 0.3
"""After a signal, open connections may bring their next request for so long; its answer tells them to close."""


def serve(
    settings: ServeSettings,
    *,
    ready: Callable[[str, Serving], None] = lambda _address, _serving: None,
    mount: Callable[[FastAPI], FastAPI] = lambda app: app,
) -> None:
    """Serve until SIGTERM or SIGINT, finish what was taken, and return. Logs go to standard error.

    Args:
        settings: What, where and within which limits.
        ready: Called once with the address when every model has been loaded.
        mount: Given the application, may mount more in it; returns it.

    Raises:
        CheckpointError: A model can't be loaded.
        RunError: The port can't be had.
    """
    with logging_to(), listen(settings.host, settings.port) as sock:
        _serve_at(sock, settings, ready, mount)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound and not yet listening.

    Raises:
        RunError: The port is taken, or there is no such address.
    """
    sock: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        if sock is not None:
            sock.close()
        raise RunError(
            f"can't listen at {host} port {port} ({error}); choose another with --host and --port"
        ) from error
    return sock


def _serve_at(
    sock: socket.socket,
    settings: ServeSettings,
    ready: Callable[[str, Serving], None],
    mount: Callable[[FastAPI], FastAPI],
) -> None:
    host, port = sock.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    app = create_app(settings)
    serving: Serving = app.state.serving
    _allow_files(settings.max_connections + 256)
    config = uvicorn.Config(
        mount(app),
        http=limited_protocol(settings, lambda why: serving.metrics.connections_refused.labels(why).inc()),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_timeout_s)),
        # What the system's queue holds beyond this is refused by it without a word.
        backlog=max(128, settings.max_connections),
    )
    failures: list[str] = []
    asyncio.run(_serve(_Server(config, serving), sock, lambda: ready(address, serving), failures))
    if failures:
        raise CheckpointError("; ".join(failures))


async def _serve(server: _Server, sock: socket.socket, ready: Callable[[], None], failures: list[str]) -> None:
    serving = server.serving

    async def watch() -> None:
        """Wait for the models; stop the server if one of them can't be loaded."""
        for service in serving.services.values():
            await service.settled.wait()
            if service.failure is not None:
                failures.append(service.failure)
                server.should_exit = True
                return
        event(logging.INFO, "ready", models=list(serving.services))
        ready()

    watcher = asyncio.ensure_future(watch())
    try:
        await server.serve(sockets=[sock])
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher  # an error of the callback is the caller's
    event(logging.INFO, "stopped")


class _Server(uvicorn.Server):
    """uvicorn's server, with a last call before connections are closed, and a plain return after a signal."""

    def __init__(self, config: uvicorn.Config, serving: Serving) -> None:
        super().__init__(config)
        self.serving = serving

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        event(logging.INFO, "stopping", connections=len(self.server_state.connections))
        self.serving.stopping = True
        for listener in self.servers:
            listener.close()
        if not self.force_exit:
            await asyncio.sleep(LAST_CALL_S)
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own raises the signal again afterwards, so that the process would not end with 0.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        names = (signal.SIGINT, signal.SIGTERM)
        before = {name: signal.signal(name, self.handle_exit) for name in names}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)


def _allow_files(count: int) -> None:
    """Raise this process's own limit of open files, as far as the system lets it: each connection is one."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
