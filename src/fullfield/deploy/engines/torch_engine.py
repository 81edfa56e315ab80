"""Files of torch.export (.pt2), run by PyTorch.

PyTorch's format may hold pickled parts, which can run code when they are read: open only files that you trust. ONNX
files have no such parts.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fullfield.deploy.description import OUTPUTS, Description
from fullfield.deploy.engines.contract import (
    check_images,
    check_threads,
    damaged,
    first_line,
    read_bytes,
    read_description,
    release_of,
)
from fullfield.errors import CheckpointError, ConfigError, MissingExtraError

__all__ = ["EXTRA_FILE", "TorchEngine", "named_outputs", "open"]

EXTRA_FILE = "fullfield.json"
"""Where the description lies in the archive."""


class TorchEngine:
    """An opened .pt2 file; made by `open`."""

    def __init__(self, module: Any, description: Description, name: str, device: Any) -> None:
        self.description = description
        self.name = name
        self._module = module
        self._device = device

    def run(self, images: NDArray[Any]) -> Mapping[str, NDArray[np.float32]]:
        """Return the outputs by name; see `Engine.run`."""
        import torch

        check_images(images, self.description)
        try:
            with torch.inference_mode():
                found = self._module(torch.tensor(images, device=self._device))
        except (RuntimeError, AssertionError) as error:  # the graph's own checks of shapes are assertions
            raise ConfigError(
                f"PyTorch can't compute images of shape {images.shape} ({first_line(error)}); try fewer or another size"
            ) from error
        return named_outputs(found, self.description.task)

    def close(self) -> None:
        """Give back the weights' memory."""
        self._module = None


def open(path: Path, threads: int | None, device: str = "auto") -> TorchEngine:  # noqa: A001 - an engine's verb
    """Open a .pt2 file from its bytes, so that what becomes of the file afterwards changes nothing.

    Args:
        path: The file; one that you trust.
        threads: Of the CPU, for all of PyTorch in this process; None leaves them as they are.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1".

    Raises:
        CheckpointError: The file is damaged, or Fullfield did not export it.
        ConfigError: The device is not to be had, or `threads` is impossible.
        MissingExtraError: PyTorch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch.export's files need torch: pip install 'fullfield[torch]'") from error
    from fullfield.tasks.source import pick_device

    check_threads(threads)
    if threads is not None:
        torch.set_num_threads(threads)
    where = pick_device(device)
    extra: dict[str, Any] = {EXTRA_FILE: ""}
    data = io.BytesIO(read_bytes(path))
    try:
        program = torch.export.load(data, extra_files=extra)
        if where.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, where)
        # guards are narrower than the graph (see formats/torch_file.py); `run` asks what the description says
        module = program.module(check_guards=False)
    except Exception as error:  # a zip's, JSON's, the unpickler's or the graph's
        raise damaged(path, error) from error
    description = read_description(extra[EXTRA_FILE], path)
    return TorchEngine(module, description, f"PyTorch {release_of(torch.__version__)} on {device_text(where)}", where)


def named_outputs(found: Any, task: str) -> dict[str, NDArray[np.float32]]:
    """Return a task's outputs by name from what a graph gave: a tensor, several in order, or a mapping.

    Raises:
        CheckpointError: There are not as many as the task has.
    """
    names = OUTPUTS[task]
    if isinstance(found, Mapping):
        values = [found[name] for name in names if name in found]
    else:
        values = list(found) if isinstance(found, list | tuple) else [found]
    if len(values) != len(names):
        raise CheckpointError(f"the graph gives {len(values)} outputs; for {task} they are {', '.join(names)}")
    return {name: value.float().cpu().numpy() for name, value in zip(names, values, strict=True)}


def device_text(device: Any) -> str:
    """Return what to call a device of PyTorch's: CPU, or cuda:0."""
    return "CPU" if device.type == "cpu" else str(device)
