"""torch.export's archive (.pt2): the traced graph and its weights, run by PyTorch without the net's own code.

Free sizes stay free: the graph holds for any batch, height and width that the net takes, whether or not maps have to
be padded to whole regions. The tracer's guards, which `ExportedProgram.module()` asks unless it is told not to, are
narrower: they ask for maps of two pixels or more, because strides are decided by that. Results are not.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import torch
import torch.fx.experimental._config as tracing

from fullfield.deploy.description import KEY, Description
from fullfield.deploy.graph import ExportGraph, capture, in_half
from fullfield.files import atomic_write

__all__ = ["EXTRA_FILE", "write_torch"]

EXTRA_FILE = f"{KEY}.json"
"""Where the description lies in the archive."""


def write_torch(module: ExportGraph, description: Description, path: str | Path, *, half: bool = False) -> Path:
    """Write a model as a .pt2 archive, whole or not at all.

    The graph takes `images` (B, C, H, W), float32, values 0 to 1, and returns `OUTPUTS` of the task in order,
    float32: a tensor, or a tuple where there are several.

    Args:
        module: As `export_module` returned it.
        description: Likewise; a batch, height or width that is None is free in the graph, the others are fixed.
        path: The file to make or replace.
        half: Weights and arithmetic in float16.

    Returns:
        The path.

    Raises:
        ConfigError: The net can't be traced at free sizes, or its weights don't fit float16. Nothing is written.
        RunError: The disk is full or the folder can't be written.
    """
    ready = in_half(module) if half else module
    described = replace(description, precision="fp16" if half else "fp32")
    # else what the guards ask for becomes the range of the sizes
    with tracing.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        program = capture(ready, described)
    archive = io.BytesIO()  # torch warns of every path that does not end in .pt2, and a partial file's does not
    torch.export.save(program, archive, extra_files={EXTRA_FILE: described.to_json()})
    file = Path(path)
    with atomic_write(file) as partial:
        partial.write_bytes(archive.getbuffer())
    return file
