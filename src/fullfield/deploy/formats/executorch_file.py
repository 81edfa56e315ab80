"""ExecuTorch program (.pte), for phones and small devices; what the file is lies beside it as NAME.pte.json.

What XNNPACK can compute is given to it, the rest runs in ExecuTorch's portable kernels.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from fullfield.deploy.description import Description
from fullfield.deploy.formats.static_graph import at_one_size, capture_static
from fullfield.deploy.graph import ExportGraph, in_half
from fullfield.errors import ConfigError, MissingExtraError
from fullfield.files import atomic_write

__all__ = ["write_executorch"]


def write_executorch(module: ExportGraph, description: Description, path: str | Path, *, half: bool = False) -> Path:
    """Write a model as an ExecuTorch program with its description beside it, both or neither.

    The method `forward` takes `images` (B, C, H, W), float32, values 0 to 1, and returns `OUTPUTS` of the task in
    order, float32. It has one size: what the description leaves free is set by `at_one_size`.

    Args:
        module: As `export_module` returned it.
        description: Likewise.
        path: The .pte file to make or replace.
        half: Weights and arithmetic in float16.

    Returns:
        The path.

    Raises:
        ConfigError: The net has an operator that ExecuTorch has no kernel for, or weights that don't fit float16.
            Nothing is written.
        MissingExtraError: executorch is not installed.
        RunError: The disk is full or the folder can't be written.
    """
    try:
        import executorch.exir  # noqa: F401 - here to be missed
    except ImportError as error:
        raise MissingExtraError("ExecuTorch needs executorch: pip install 'fullfield[executorch]'") from error
    described = replace(at_one_size(description), precision="fp16" if half else "fp32")
    with _quiet():
        program = _lowered(capture_static(in_half(module) if half else module, described), described)
    _check_kernels(program, described)
    file = Path(path)
    # The block's end renames the description first: a reader that finds the new program finds it too.
    with atomic_write(file) as partial, atomic_write(file.with_name(file.name + ".json")) as text:
        partial.write_bytes(program.buffer)
        text.write_text(described.to_json(), encoding="utf-8")
    return file


def _lowered(program: ExportedProgram, description: Description) -> Any:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    try:
        return to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    except Exception as error:  # its passes and verifiers have errors of many kinds
        text = str(error).strip()
        found = re.search(r"Missing out variants: \{([^}]+)\}", text) or re.search(
            r"Operator torch\._ops\.(\S+) is not", text
        )
        first = (text.splitlines() or [type(error).__name__])[0][:200]
        what = f"the operator {found[1].replace(chr(39), '')}" if found else f"it ({first})"
        raise ConfigError(
            f"ExecuTorch can't carry {what} of {description.name}; export it with --to onnx or --to torch"
        ) from error


def _check_kernels(program: Any, description: Description) -> None:
    """Refuse a program that calls what no kernel of ExecuTorch computes: it would fail on the device, at its first run.

    Raises:
        ConfigError: There is such an operator; the message names all.
    """
    from executorch.runtime import Runtime

    known = Runtime.get().operator_registry.operator_names
    plans = program.executorch_program.execution_plan
    called = {f"{op.name}.{op.overload}" if op.overload else op.name for plan in plans for op in plan.operators}
    missing = sorted(called - known)
    if missing:
        raise ConfigError(
            f"ExecuTorch has no kernel for the operator {', '.join(missing)} of {description.name}; export it with --to"
            " onnx or --to torch"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back remarks of the lowering on what it leaves to the portable kernels."""
    loggers = [logging.getLogger(name) for name in ("executorch", "torch.utils._pytree", "root")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
