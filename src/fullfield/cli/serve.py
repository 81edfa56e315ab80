"""`fullfield serve RUN|FILE ...`: models behind HTTP, until Ctrl-C or SIGTERM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import tyro
from rich.markup import escape

from fullfield.cli.parse import parse
from fullfield.errors import MissingExtraError
from fullfield.progress import console, output

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["ServeArguments", "run"]

NEEDED = frozenset({"fastapi", "uvicorn", "starlette", "prometheus_client", "python_multipart", "h11", "pydantic"})


@dataclass(frozen=True)
class ServeArguments:
    """Serve models over HTTP: batches, limits, keys, metrics. Stops on Ctrl-C or SIGTERM when all it took is answered.

    Each model has processes of its own. Logs go to standard error, one JSON object a line.
    """

    models: tyro.conf.Positional[tuple[str, ...]]
    """Run folders, exported files, files of weights, or registered models; the first is the default one."""
    name: tuple[str, ...] = ()
    """Names of the models in addresses, in the same order; by default those of the files or folders."""
    host: str = "127.0.0.1"
    """Address to listen at. One that other machines reach needs keys."""
    port: int = 8000
    """0 takes any free one."""
    keys: str | None = None
    """File of API keys, one a line; FULLFIELD_API_KEYS may hold some, too, separated by commas."""
    insecure: bool = False
    """Let other machines in without keys."""
    workers: int = 1
    """Processes a model."""
    threads: int | None = None
    """Of the CPU, a process; by default all processes share the cores."""
    device: str = "auto"
    """auto, cpu, cuda."""
    pretrained: bool = False
    """For registered models: fetch timm's weights."""
    page: bool = False
    """Put the page of `fullfield app` at /page, with the same models in the main process; needs fullfield[app]."""
    batch_size: int = 8
    """At most so many images are answered at once."""
    batch_wait_ms: float = 5.0
    """So long the first image of a batch waits for others."""
    queue_size: int = 64
    """At most so many images wait for a model; more are refused with 429."""
    max_megabytes: float = 20.0
    """Of a request's body."""
    max_megapixels: float = 50.0
    """Of an image."""
    max_images: int = 16
    """In a request."""
    max_requests: int = 256
    """Read or answered at one time; more are refused with 429."""
    max_connections: int = 1024
    """Open at one time; more are refused with 503."""
    upload_timeout: float = 60.0
    """Seconds for a body to come."""
    request_timeout: float = 30.0
    """Seconds from then to the answer."""
    shutdown_timeout: float = 30.0
    """Seconds to finish what was taken."""


def run(argv: list[str]) -> int:
    """Serve; 0 after a signal, 1 if a model can't be loaded or the port can't be had."""
    arguments = parse(ServeArguments, "serve", argv)
    try:
        from fullfield.deploy.serve.keys import read_keys
        from fullfield.deploy.serve.run import serve
        from fullfield.deploy.serve.serving import Serving
        from fullfield.deploy.serve.settings import ServeSettings, name_models
    except ModuleNotFoundError as error:
        if error.name not in NEEDED:
            raise
        raise MissingExtraError(f"serving needs {error.name}: pip install 'fullfield[serve]'") from error
    settings = ServeSettings(
        name_models(arguments.models, arguments.name),
        host=arguments.host,
        port=arguments.port,
        keys=read_keys(arguments.keys),
        insecure=arguments.insecure,
        workers=arguments.workers,
        threads=arguments.threads,
        device=arguments.device,
        pretrained=arguments.pretrained,
        batch_size=arguments.batch_size,
        batch_wait_ms=arguments.batch_wait_ms,
        queue_size=arguments.queue_size,
        max_bytes=round(arguments.max_megabytes * 1e6),
        max_held_bytes=max(500_000_000, round(arguments.max_megabytes * 1e6)),
        max_pixels=round(arguments.max_megapixels * 1e6),
        max_images=min(arguments.max_images, arguments.queue_size),
        max_requests=arguments.max_requests,
        max_connections=arguments.max_connections,
        upload_timeout_s=arguments.upload_timeout,
        request_timeout_s=arguments.request_timeout,
        shutdown_timeout_s=arguments.shutdown_timeout,
    )

    def ready(address: str, serving: Serving) -> None:
        screen = output()
        key = " -H 'X-API-Key: KEY'" if settings.keys else ""
        for name, service in serving.services.items():
            about = service.about
            told = f"{about['net']}, {len(about['classes'])} classes, {about['engine']}"
            screen.print(f"{escape(name)}: {escape(told)}", soft_wrap=True)
            if not about["trained"]:
                console.print(f"{escape(name)}: the weights are random: the answers mean nothing", style="red")
        screen.print(f"\nserving at {address}, Ctrl-C ends it; {address}/docs tells more\n", soft_wrap=True)
        if arguments.page:
            screen.print(f"  the page: {address}/page/\n", soft_wrap=True)
        screen.print(f"  curl{key} -F files=@photo.jpg {address}/v1/predict", markup=False, soft_wrap=True)
        for name in list(serving.services)[1:]:
            line = f"  curl{key} -F files=@photo.jpg {address}/v1/models/{name}/predict"
            screen.print(line, markup=False, soft_wrap=True)
        screen.file.flush()  # who reads it through a pipe waits for it

    serve(settings, ready=ready, mount=_page(arguments) if arguments.page else lambda app: app)
    return 0


def _page(arguments: ServeArguments) -> Callable[[FastAPI], FastAPI]:
    """Return what puts the page into the service.

    Raises:
        MissingExtraError: gradio is not installed.
    """
    from fullfield.app.page import mount_page

    more: dict[str, Any] = {
        "device": arguments.device,
        "threads": arguments.threads,
        "pretrained": arguments.pretrained,
    }
    return partial(mount_page, sources=arguments.models, path="/page", **more)
