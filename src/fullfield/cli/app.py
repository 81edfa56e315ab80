"""`fullfield app RUN|FILE|NAME...`: a page in the browser to look at models with."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

import tyro
from rich.markup import escape

from fullfield.cli.parse import parse
from fullfield.errors import ConfigError, MissingExtraError
from fullfield.progress import console

__all__ = ["AppArguments", "run"]

GRACE = 3  # seconds that open answers get after Ctrl-C


@dataclass(frozen=True)
class AppArguments:
    """Look at models in a browser: answers, class-activation maps, receptive fields, costs, reports."""

    models: tyro.conf.Positional[tuple[str, ...]]
    """Run folders, weights files, exported files and registered models; the page switches between them."""
    port: int = 7860
    """Of the page; 0 takes a free one."""
    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 lets everyone in who can reach this machine."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    threads: int | None = None
    """Threads of the CPU for exported files. By default what the library that runs them takes."""
    pretrained: bool = False
    """For registered models: fetch timm's weights."""


def run(argv: list[str]) -> int:
    """Open the models and serve the page until Ctrl-C."""
    arguments = parse(AppArguments, "app", argv)
    if not arguments.models:
        raise ConfigError("name at least one model: fullfield app RUN")
    listening = _listen(arguments.host, arguments.port)  # before the models, which take longer
    try:
        with listening:
            _serve(arguments, listening)
    except KeyboardInterrupt:
        console.print("the page is closed")
    return 0


def _serve(arguments: AppArguments, listening: socket.socket) -> None:
    try:
        import uvicorn
        from fastapi import FastAPI
    except ModuleNotFoundError as error:
        raise MissingExtraError("the page needs gradio: pip install 'fullfield[app]'") from error
    from fullfield.app.page import mount_page

    application = mount_page(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        arguments.models,
        path="/",
        device=arguments.device,
        threads=arguments.threads,
        pretrained=arguments.pretrained,
    )
    server = uvicorn.Server(
        uvicorn.Config(application, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE)
    )
    port = listening.getsockname()[1]
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    console.print(f"the page is at {escape(f'http://{host}:{port}/')} (Ctrl-C ends it)", soft_wrap=True)
    if not _is_loopback(arguments.host):
        console.print("everyone who can reach this machine can use it; there is no password", style="yellow")
    server.run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address.

    Raises:
        ConfigError: The port is taken or not allowed, or the address is not this machine's.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"there is no port {port}; ports are 0 (any free one) to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"can't listen on {host}, port {port} ({error.strerror or error}); choose another --port, or --host"
        ) from error
    return listening


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
