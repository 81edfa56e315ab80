"""Core ML packages (.mlpackage), which Apple's systems alone can run; elsewhere opening one says so."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fullfield.deploy.description import KEY, OUTPUTS, Description
from fullfield.deploy.engines.contract import (
    check_images,
    check_threads,
    damaged,
    first_line,
    input_name,
    read_description,
    release_of,
)
from fullfield.errors import ConfigError, MissingExtraError

__all__ = ["CoreMLEngine", "open"]


class CoreMLEngine:
    """An opened package; made by `open`."""

    def __init__(self, model: Any, description: Description, name: str) -> None:
        self.description = description
        self.name = name
        self._model = model
        self._lock = Lock()  # coremltools does not say that prediction is safe from several threads

    def run(self, images: NDArray[Any]) -> Mapping[str, NDArray[np.float32]]:
        """Return the outputs by name; see `Engine.run`."""
        check_images(images, self.description)
        try:
            with self._lock:
                found = self._model.predict({input_name(self.description): images})
        except RuntimeError as error:
            raise ConfigError(f"Core ML can't compute images of shape {images.shape} ({first_line(error)})") from error
        return {name: np.asarray(found[name], np.float32) for name in OUTPUTS[self.description.task]}

    def close(self) -> None:
        """Give back the model's memory."""
        self._model = None


def open(path: Path, threads: int | None) -> CoreMLEngine:  # noqa: A001 - an engine's verb
    """Open a package; Core ML copies and compiles it, so what becomes of it afterwards changes nothing.

    Args:
        path: The package, a folder.
        threads: Not used: Core ML decides by itself.

    Raises:
        CheckpointError: The package is damaged, or Fullfield did not export it.
        ConfigError: `threads` is impossible.
        MissingExtraError: This is no Mac, or coremltools is not installed.
    """
    check_threads(threads)
    if platform.system() != "Darwin":
        raise MissingExtraError(
            f"{path} is a Core ML package, and Core ML computes on macOS alone; here export the run with --to onnx or"
            " --to openvino and use that file"
        )
    return _open_on_mac(path)


def _open_on_mac(path: Path) -> CoreMLEngine:
    try:
        import coremltools
    except ImportError as error:
        raise MissingExtraError("Core ML packages need coremltools: pip install 'fullfield[coreml]'") from error
    try:
        model = coremltools.models.MLModel(str(path))
    except Exception as error:  # of the protobuf, the file system or Core ML itself
        raise damaged(path, error) from error
    description = read_description(model.user_defined_metadata.get(KEY), path)
    return CoreMLEngine(model, description, f"Core ML, coremltools {release_of(coremltools.__version__)}")
