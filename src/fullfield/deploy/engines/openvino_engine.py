"""OpenVINO's files (.xml beside .bin), run by OpenVINO on the CPU; needs no PyTorch."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fullfield.deploy.description import KEY, OUTPUTS, Description
from fullfield.deploy.engines.contract import (
    check_images,
    check_names,
    check_threads,
    damaged,
    first_line,
    input_name,
    read_bytes,
    read_description,
    release_of,
)
from fullfield.errors import CheckpointError, ConfigError, MissingExtraError

__all__ = ["OpenVinoEngine", "open"]


class OpenVinoEngine:
    """An opened file; made by `open`."""

    def __init__(self, compiled: Any, description: Description, name: str) -> None:
        self.description = description
        self.name = name
        self._compiled = compiled
        self._idle: SimpleQueue[Any] = SimpleQueue()  # a request serves one thread at a time

    def run(self, images: NDArray[Any]) -> Mapping[str, NDArray[np.float32]]:
        """Return the outputs by name; see `Engine.run`."""
        check_images(images, self.description)
        try:
            request = self._idle.get_nowait()
        except Empty:
            request = self._compiled.create_infer_request()
        try:
            request.infer({input_name(self.description): np.ascontiguousarray(images)}, share_inputs=True)
            outputs = {name: request.get_tensor(name).data.copy() for name in OUTPUTS[self.description.task]}
        except RuntimeError as error:
            raise ConfigError(
                f"OpenVINO can't compute images of shape {images.shape} ({first_line(error)}); try fewer or smaller"
                " ones"
            ) from error
        finally:
            self._idle.put(request)
        return outputs

    def close(self) -> None:
        """Give back the compiled model's memory."""
        self._idle = SimpleQueue()
        self._compiled = None


def open(path: Path, threads: int | None) -> OpenVinoEngine:  # noqa: A001 - an engine's verb
    """Open an .xml file and the .bin beside it, both read whole, so that what becomes of them changes nothing.

    Args:
        path: The .xml file.
        threads: Of the CPU; None leaves it to OpenVINO.

    Raises:
        CheckpointError: A file is missing or damaged, or Fullfield did not export it.
        ConfigError: `threads` is impossible.
        MissingExtraError: OpenVINO is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("OpenVINO's files need openvino: pip install 'fullfield[openvino]'") from error
    check_threads(threads)
    weights = path.with_suffix(".bin")
    if not weights.exists():
        raise CheckpointError(f"{weights} is missing: an OpenVINO model is two files, {path.name} and {weights.name}")
    core = openvino.Core()
    # Processors with bfloat16 would otherwise compute in it, which changes the third digit of the answers.
    properties: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        properties["INFERENCE_NUM_THREADS"] = threads
    text, data = read_bytes(path), read_bytes(weights)
    try:
        core.set_property({"ENABLE_MMAP": False})
        model = core.read_model(io.BytesIO(text), io.BytesIO(data))
        description = read_description(_description_text(model), path)
        compiled = core.compile_model(model, "CPU", properties)
    except RuntimeError as error:
        raise damaged(path, error) from error
    inputs, outputs = ([one.get_any_name() for one in ports] for ports in (compiled.inputs, compiled.outputs))
    check_names(inputs, outputs, description, path)
    return OpenVinoEngine(compiled, description, f"OpenVINO {release_of(openvino.__version__)} on CPU")


def _description_text(model: Any) -> str | None:
    return str(model.get_rt_info(KEY).astype(str)) if model.has_rt_info(KEY) else None
