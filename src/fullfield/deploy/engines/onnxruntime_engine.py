"""ONNX files, run by ONNX Runtime; needs no PyTorch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
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
from fullfield.errors import ConfigError, MissingExtraError

__all__ = ["OnnxRuntimeEngine", "open"]

_SILENT = 4  # only what is fatal is logged: every error reaches the caller as an exception


class OnnxRuntimeEngine:
    """An opened ONNX file; made by `open`."""

    def __init__(self, session: Any, description: Description, name: str) -> None:
        self.description = description
        self.name = name
        self._session = session

    def run(self, images: NDArray[Any]) -> Mapping[str, NDArray[np.float32]]:
        """Return the outputs by name; see `Engine.run`."""
        check_images(images, self.description)
        names = OUTPUTS[self.description.task]
        try:
            outputs = self._session.run(names, {input_name(self.description): np.ascontiguousarray(images)})
        except Exception as error:  # the library's errors share no base but this
            raise ConfigError(
                f"ONNX Runtime can't compute images of shape {images.shape} ({first_line(error)}); try fewer or smaller"
                " ones"
            ) from error
        return dict(zip(names, outputs, strict=True))

    def close(self) -> None:
        """Give back the session's memory."""
        self._session = None


def open(path: Path, threads: int | None, device: str = "auto") -> OnnxRuntimeEngine:  # noqa: A001 - an engine's verb
    """Open an ONNX file from its bytes, so that what becomes of the file afterwards changes nothing.

    Args:
        path: The file.
        threads: Of the CPU; None leaves it to ONNX Runtime.
        device: "auto" and "cpu" are the CPU; "cuda" and "cuda:1" need the package onnxruntime-gpu.

    Raises:
        CheckpointError: The file is damaged, or Fullfield did not export it.
        ConfigError: The device is not to be had, or `threads` is impossible.
        MissingExtraError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("ONNX files need onnxruntime: pip install 'fullfield[run]'") from error
    check_threads(threads)
    providers = _providers(device, onnxruntime.get_available_providers())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = threads or 0
    # idle threads would keep their cores busy for a while, and other sessions or PyTorch want them: on two cores a net
    # of 2,000 nodes was a third slower for it
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    data = read_bytes(path)
    try:
        session = onnxruntime.InferenceSession(data, options, providers=providers)
    except Exception as error:  # as in run
        raise damaged(path, error) from error
    description = read_description(session.get_modelmeta().custom_metadata_map.get(KEY), path)
    inputs, outputs = ([one.name for one in found] for found in (session.get_inputs(), session.get_outputs()))
    check_names(inputs, outputs, description, path)
    where = "CUDA" if session.get_providers()[0].startswith("CUDA") else "CPU"
    if where == "CPU" and len(providers) > 1:
        raise ConfigError(f"ONNX Runtime could not start on {device} and would use the CPU; try --device cpu")
    return OnnxRuntimeEngine(session, description, f"ONNX Runtime {release_of(onnxruntime.__version__)} on {where}")


def _providers(device: str, available: list[str]) -> list[Any]:
    """Return what ONNX Runtime calls the devices, best first."""
    cpu = "CPUExecutionProvider"
    if device in ("auto", "cpu"):
        return [cpu]
    found = re.fullmatch(r"cuda(?::(\d+))?", device)
    if found is None:
        raise ConfigError(f"ONNX files run on cpu, cuda or cuda:1, not on {device!r}")
    if "CUDAExecutionProvider" not in available:
        raise ConfigError(
            f"the installed ONNX Runtime has no CUDA, so {device} can't be used; install onnxruntime-gpu in place of"
            " onnxruntime, or use --device cpu"
        )
    return [("CUDAExecutionProvider", {"device_id": int(found[1] or 0)}), cpu]
