"""Opening an exported file with the library that runs it, found by its suffix.

Each engine is a module of `engines` with `open(path, threads)`, and is imported when a file of its kind is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fullfield.deploy.description import Description
from fullfield.errors import CheckpointError, nearest

__all__ = ["SUFFIXES", "Engine", "is_exported", "open_engine"]

SUFFIXES = {
    ".onnx": "onnxruntime_engine",
    ".xml": "openvino_engine",
    ".pt2": "torch_engine",
    ".pte": "executorch_engine",
    ".mlpackage": "coreml_engine",
}
"""Suffix of an exported file -> the module of `engines` that runs it."""


class Engine(Protocol):
    """An opened file that turns images into outputs."""

    @property
    def description(self) -> Description:
        """What the file says of itself."""

    @property
    def name(self) -> str:
        """The library with its version and where it computes, such as "ONNX Runtime 1.31 on CPU"."""

    def run(self, images: NDArray[Any]) -> Mapping[str, NDArray[np.float32]]:
        """Return the outputs by name; safe to call from several threads.

        Args:
            images: (B, C, H, W) float32, values from 0 to 1; B, H and W as the description allows.

        Raises:
            ConfigError: The shape is not one that the file takes.
        """

    def close(self) -> None:
        """Give back what it holds."""


def is_exported(source: object) -> bool:
    """Whether a model's source has the suffix of an exported file."""
    return isinstance(source, str | Path) and Path(source).suffix.lower() in SUFFIXES


def open_engine(path: str | Path, *, threads: int | None = None) -> Engine:
    """Open an exported file.

    Args:
        path: Of one of `SUFFIXES`.
        threads: Of the CPU; None leaves it to the library.

    Raises:
        CheckpointError: There is no such file, it is damaged, or Fullfield did not export it.
        MissingExtraError: The library that runs it is not installed.
    """
    file = Path(path)
    if file.suffix.lower() not in SUFFIXES:
        raise CheckpointError(f"{file} is no exported model; there are {', '.join(SUFFIXES)}")
    if not file.exists():
        siblings = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
        raise CheckpointError(f"there is no file {file}{nearest(file.name, siblings)}")
    module = import_module(f"fullfield.deploy.engines.{SUFFIXES[file.suffix.lower()]}")
    opened: Engine = module.open(file, threads)
    return opened
