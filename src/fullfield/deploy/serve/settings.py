"""Every limit and choice of the service, checked when it is made."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from fullfield.errors import ConfigError

__all__ = ["ServeSettings", "ServedModel", "is_loopback", "name_models"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class ServedModel:
    """A model and the name that it has in addresses."""

    name: str
    source: str
    """Run folder, exported file, file of weights, or registered name."""


@dataclass(frozen=True)
class ServeSettings:
    """What is served, where, and within which limits.

    Attributes:
        models: At least one; the first is the default one.
        host: Address to listen at.
        port: 0 for any free one.
        keys: One of them must come with every request; without any, everyone who reaches the port may ask.
        insecure: Allow an address beyond this machine without keys.
        workers: Processes a model.
        threads: Of the CPU, a process; None shares the cores among all processes.
        device: "auto", "cpu", "cuda", ...
        pretrained: For registered names: fetch timm's weights.
        factory: "module:callable" that makes a predictor as `fullfield.deploy.predictor.Predictor` does.
        batch_size: At most so many images are answered at once.
        batch_wait_ms: So long the first image of a batch waits for others.
        queue_size: At most so many images wait for a model; more are refused with 429.
        max_bytes: Of a request's body.
        max_pixels: Of an image, read from its header; also how many are decoded at one time.
        max_images: In a request.
        max_requests: That are read or answered at one time; more are refused with 429.
        max_held_bytes: Of all bodies in memory together; more are refused with 429.
        max_connections: Open at one time; more are refused with 503.
        header_timeout_s: For a request's head.
        idle_timeout_s: Between two pieces of a body.
        upload_timeout_s: For a whole body.
        request_timeout_s: From the end of the body to the answer.
        batch_timeout_s: A worker that takes longer for a batch is stopped and started again.
        load_timeout_s: For a worker to load its model.
        shutdown_timeout_s: For finishing what was taken.

    Raises:
        ConfigError: A value is impossible, or the address is open to others without a key.
    """

    models: tuple[ServedModel, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = ()
    insecure: bool = False
    workers: int = 1
    threads: int | None = None
    device: str = "auto"
    pretrained: bool = False
    factory: str = "fullfield.deploy.predictor:Predictor"
    batch_size: int = 8
    batch_wait_ms: float = 5.0
    queue_size: int = 64
    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    max_images: int = 16
    max_requests: int = 256
    max_held_bytes: int = 500_000_000
    max_connections: int = 1024
    header_timeout_s: float = 10.0
    idle_timeout_s: float = 10.0
    upload_timeout_s: float = 60.0
    request_timeout_s: float = 30.0
    batch_timeout_s: float = 60.0
    load_timeout_s: float = 300.0
    shutdown_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("no model was named; give a run folder or an exported file")
        for model in self.models:
            if not _NAME.fullmatch(model.name):
                raise ConfigError(
                    f"a model's name is {model.name!r}; expected letters, digits, '.', '_' and '-', at most 64: it is"
                    " part of an address (--name)"
                )
        names = [model.name for model in self.models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"several models are called {twice[0]!r}; give each a name of its own (--name A B)")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith(("_s", "_ms")) and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{field.name} is {value}; expected a time of 0 or more")
            if field.name.startswith(("max_", "batch_size", "queue_", "workers")) and value < 1:
                raise ConfigError(f"{field.name} is {value}; expected at least 1")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads is {self.threads}; expected at least 1")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; expected 0 to 65535")
        if self.max_images > self.queue_size:
            raise ConfigError(
                f"max_images is {self.max_images}, but only {self.queue_size} images can wait; raise queue_size or"
                " lower max_images"
            )
        if self.max_held_bytes < self.max_bytes:
            raise ConfigError(f"max_held_bytes is {self.max_held_bytes}, less than one body of {self.max_bytes} bytes")
        if not (self.keys or self.insecure or is_loopback(self.host)):
            raise ConfigError(
                f"{self.host} can be reached from other machines, and no key protects it; give keys (--keys FILE or"
                " FULLFIELD_API_KEYS), or say --insecure if something else guards it"
            )


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def name_models(sources: Sequence[str], names: Sequence[str] = ()) -> tuple[ServedModel, ...]:
    """Give each source its name: the given one, or that of its file or folder.

    Args:
        sources: As in `ServedModel`.
        names: None, or one a source, in the same order.

    Raises:
        ConfigError: There are names, but not one a source.
    """
    if names and len(names) != len(sources):
        raise ConfigError(f"{len(sources)} models need as many names, got {len(names)}")
    return tuple(
        ServedModel(name, source)
        for name, source in zip(names or [_default_name(source) for source in sources], sources, strict=True)
    )


def _default_name(source: str) -> str:
    path = Path(source)
    # A registered name may have a dot; only a file has a suffix to drop.
    stem = path.stem if path.is_file() else path.resolve().name if path.is_dir() else path.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:64] or "model"
