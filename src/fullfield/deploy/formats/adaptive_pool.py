"""Adaptive average pooling for graphs of free size, as two products of matrices.

PyTorch's own decomposition gathers the pixels of each bin by index. Whether bins overlap and how long they are it
settles while tracing, for the size of the example; at sizes with another remainder its indices are wrong or out of
bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from fullfield.errors import ConfigError

__all__ = ["adaptive_avg_pool2d", "with_exportable_pooling"]

aten = torch.ops.aten
_AVERAGE = aten.adaptive_avg_pool2d.default
_OTHERS: tuple[Any, ...] = (
    aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool3d.default,
    aten.adaptive_max_pool1d.default,
    aten.adaptive_max_pool2d.default,
    aten.adaptive_max_pool3d.default,
)


def adaptive_avg_pool2d(x: Tensor, output_size: Sequence[int]) -> Tensor:
    """Average over `torch.nn.functional.adaptive_avg_pool2d`'s bins, in operators that hold at every size.

    Bin i of n along an axis of length L holds the pixels floor(i L / n) to ceil((i + 1) L / n) - 1.

    Args:
        x: Maps (..., H, W), floating point.
        output_size: Bins along H and along W.

    Returns:
        (..., *output_size), of x's dtype.
    """
    if tuple(output_size) == (1, 1):  # most nets' last step, and an operator of its own in every runtime
        return x.mean((-2, -1), keepdim=True)
    rows, columns = (_averaging(x.shape[axis - 2], bins, x) for axis, bins in enumerate(output_size))
    return rows @ (x @ columns.mT)


def with_exportable_pooling(program: ExportedProgram, name: str) -> ExportedProgram:
    """Return the program with `adaptive_avg_pool2d` from here in the place of PyTorch's, where a size is free.

    Args:
        program: A traced net.
        name: Of the net, for the message.

    Raises:
        ConfigError: Another adaptive pooling meets a free size.
    """
    free = {node.target for node in program.graph.nodes if node.target in (_AVERAGE, *_OTHERS) and _is_free(node)}
    if others := sorted(map(str, free - {_AVERAGE})):
        raise ConfigError(
            f"ONNX can't carry the operator {', '.join(others)} of {name} at any height and width; give one size, such"
            " as `--size 224`, or export it with --to torch"
        )
    return program.run_decompositions({_AVERAGE: adaptive_avg_pool2d}) if free else program


def _averaging(length: int, bins: int, like: Tensor) -> Tensor:
    """Return the matrix (bins, length) that averages, of the dtype and on the device of `like`."""
    bin_ = torch.arange(bins, device=like.device)[:, None]
    pixel = torch.arange(length, device=like.device)
    # floor and ceil multiplied out: a runtime may divide integers in floating point
    inside = ((pixel + 1) * bins > bin_ * length) & (pixel * bins < (bin_ + 1) * length)
    weights = inside.to(like.dtype)
    return weights / weights.sum(-1, keepdim=True)


def _is_free(node: torch.fx.Node) -> bool:
    """Whether it pools axes of unknown size into more than one bin."""
    x: Any = node.args[0]
    output_size: Any = node.args[1]
    sizes = x.meta["val"].shape[-len(output_size) :]
    return any(bins != 1 for bins in output_size) and not all(isinstance(size, int) for size in sizes)
