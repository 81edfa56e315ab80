"""ExecuTorch's files (.pte with NAME.pte.json beside it), run by its Python runtime.

They are meant for phones and small devices; here they are run to check them. The runtime takes and gives PyTorch's
tensors, so PyTorch is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fullfield.deploy.description import Description
from fullfield.deploy.engines.contract import (
    check_images,
    check_threads,
    damaged,
    first_line,
    read_bytes,
    read_description,
    release_of,
)
from fullfield.deploy.engines.torch_engine import named_outputs
from fullfield.errors import ConfigError, MissingExtraError

__all__ = ["ExecuTorchEngine", "open"]


class ExecuTorchEngine:
    """An opened .pte file; made by `open`."""

    def __init__(self, method: Any, description: Description, name: str, held: tuple[Any, ...] = ()) -> None:
        self.description = description
        self.name = name
        self._method = method
        self._held = held  # the method reads from the program and its bytes, and keeps neither alive
        self._lock = Lock()  # a method owns the memory that it computes in

    def run(self, images: NDArray[Any]) -> Mapping[str, NDArray[np.float32]]:
        """Return the outputs by name; see `Engine.run`."""
        import torch

        check_images(images, self.description)
        try:
            with self._lock:
                return named_outputs(self._method.execute([torch.tensor(images)]), self.description.task)
        except RuntimeError as error:
            raise ConfigError(
                f"ExecuTorch can't compute images of shape {images.shape} ({first_line(error)})"
            ) from error

    def close(self) -> None:
        """Give back the program's memory."""
        self._method = None
        self._held = ()


def open(path: Path, threads: int | None) -> ExecuTorchEngine:  # noqa: A001 - an engine's verb
    """Open a .pte file from its bytes.

    Args:
        path: The file; its description lies beside it.
        threads: Not used: ExecuTorch's runtime decides by itself.

    Raises:
        CheckpointError: A file is missing or damaged.
        ConfigError: `threads` is impossible.
        MissingExtraError: ExecuTorch is not installed.
    """
    try:
        import executorch.version
        from executorch.runtime import Runtime
    except ImportError as error:
        raise MissingExtraError("ExecuTorch's files need executorch: pip install 'fullfield[executorch]'") from error
    check_threads(threads)
    beside = path.with_name(path.name + ".json")
    text = read_bytes(beside).decode("utf-8", "replace") if beside.exists() else None
    description = read_description(text, path)
    try:
        data = read_bytes(path)
        program = Runtime.get().load_program(data)
        method = program.load_method("forward")
    except RuntimeError as error:
        raise damaged(path, error) from error
    name = f"ExecuTorch {release_of(executorch.version.__version__)} on CPU"
    return ExecuTorchEngine(method, description, name, (program, data))
