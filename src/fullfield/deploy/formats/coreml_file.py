"""Core ML package (.mlpackage), a folder with the graph as an ML program, for Apple's systems.

Core ML computes on macOS and iOS alone. Elsewhere the package is converted and its graph checked, axes of all tensors
and names and shapes of input and outputs included; that its numbers are PyTorch's can be seen on a Mac only.
"""

from __future__ import annotations

import logging
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.export import ExportedProgram

from fullfield.deploy.description import KEY, OUTPUTS, Description
from fullfield.deploy.formats.scratch import scratch_folder
from fullfield.deploy.formats.static_graph import MAX_AXES, at_one_size, capture_static
from fullfield.deploy.graph import ExportGraph
from fullfield.errors import ConfigError, MissingExtraError

__all__ = ["write_coreml"]


def write_coreml(module: ExportGraph, description: Description, path: str | Path, *, half: bool = False) -> Path:
    """Write a model as a Core ML package, whole or not at all.

    The program has one input `images` (B, C, H, W), float32, values 0 to 1, and the outputs `OUTPUTS` of
    its task, float32; it needs iOS 16 or macOS 13. It has one size: what the description leaves free is set by
    `at_one_size`. The description lies in the package's user-defined metadata under `KEY`.

    Args:
        module: As `export_module` returned it, in float32 also where `half` is asked.
        description: Likewise.
        path: The folder to make or replace.
        half: Weights and arithmetic in float16, which Apple's neural engine needs.

    Returns:
        The path.

    Raises:
        ConfigError: The net has an operator that Core ML lacks. Nothing is written.
        MissingExtraError: coremltools is not installed.
        RunError: The disk is full or the folder can't be written.
    """
    with _quiet():
        try:
            import coremltools
        except ImportError as error:
            raise MissingExtraError("Core ML needs coremltools: pip install 'fullfield[coreml]'") from error
        described = replace(at_one_size(description), precision="fp16" if half else "fp32")
        model = _converted(coremltools, capture_static(module, described), described)
        _check(model, described)
        model.user_defined_metadata[KEY] = described.to_json()
        file = Path(path)
        with scratch_folder(file) as folder:
            model.save(str(folder / "new.mlpackage"))
            _swap(folder / "new.mlpackage", file, folder / "old.mlpackage")
    return file


def _converted(coremltools: Any, program: ExportedProgram, description: Description) -> Any:
    precision = coremltools.precision
    try:
        return coremltools.convert(
            program,
            outputs=[coremltools.TensorType(name, dtype=np.float32) for name in OUTPUTS[description.task]],
            convert_to="mlprogram",
            minimum_deployment_target=coremltools.target.iOS16,
            compute_precision=precision.FLOAT16 if description.precision == "fp16" else precision.FLOAT32,
            skip_model_load=True,
        )
    except (ValueError, RuntimeError, TypeError, KeyError, AssertionError) as error:  # it has none of its own
        raise ConfigError(_unsupported(error, description.name)) from error


def _check(model: Any, description: Description) -> None:
    """Check what Core ML would refuse, or read otherwise, on the device.

    Raises:
        ConfigError: A tensor has too many axes, or input or outputs are not those of the task.
    """
    for op in model._mil_program.functions["main"].operations:
        wide = [out for out in op.outputs if out.shape is not None and len(out.shape) > MAX_AXES]
        if wide and op.op_type != "const":
            raise ConfigError(
                f"Core ML can't carry the operator {op.op_type} of {description.name}: its result has"
                f" {len(wide[0].shape)} axes, and Core ML's tensors at most {MAX_AXES}; export it with --to onnx"
            )
    told = model.get_spec().description
    names = [port.name for port in told.input], [port.name for port in told.output]
    if names != (["images"], list(OUTPUTS[description.task])):
        raise ConfigError(f"Core ML named input and outputs of {description.name} {names}; export it with --to onnx")


def _swap(new: Path, target: Path, aside: Path) -> None:
    """Put a folder in the place of another; what was there comes back if that fails."""
    if target.is_dir():
        target.replace(aside)
    try:
        new.replace(target)
    except BaseException:
        if aside.exists():
            aside.replace(target)
        raise
    with suppress(OSError):
        shutil.rmtree(aside)


def _unsupported(error: BaseException, name: str) -> str:
    text = str(error).strip()
    found = re.search(r"for op '([^']+)' not implemented", text) or re.search(r"Unsupported fx node ([^,\s]+)", text)
    what = f"the operator {found[1]}" if found else f"it ({(text.splitlines() or [type(error).__name__])[0][:200]})"
    return f"Core ML can't carry {what} of {name}; export it with --to onnx, --to openvino or --to torch"


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back coremltools' remarks: untested versions of other libraries, the prediction that needs a Mac."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
