"""Graphs of one size, in the narrower language of the runtimes for phones (Core ML, ExecuTorch).

Those know no negative padding, and their tensors have few axes (Core ML 5, XNNPACK 6), where region operators lay a map
out as (B, heads, channels, rows of regions, rows, columns of regions, columns). At one known size neither is needed: a
crop is a slice, and axes that stay together through a permutation or a sum are one axis. The rewriting is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from fullfield.data.dense import DensePreprocess
from fullfield.data.preprocess import Preprocess
from fullfield.deploy.description import Description
from fullfield.deploy.graph import ExportGraph, capture

__all__ = ["MAX_AXES", "at_one_size", "capture_static"]

MAX_AXES = 5
"""Of Core ML's tensors; XNNPACK has one more."""
_DENSE_SIDE = 512  # of a dense net whose preprocessing names no size; a multiple of the stride
_STRIDE = 32
aten = torch.ops.aten
_PADS: dict[Any, int] = {aten.constant_pad_nd.default: 2, aten.pad.default: 3}  # and where the value stands


def at_one_size(description: Description) -> Description:
    """Return the description with the sizes that are free in it given: one image, of the size of the preprocessing.

    A classifier has its own. A dense net gets a square: the window that it was trained on, else its shorter side, else
    512 pixels, rounded up to a multiple of 32.
    """
    if description.task == "classify":
        side = Preprocess.from_dict(description.preprocess).image_size
    else:
        dense = DensePreprocess.from_dict(description.preprocess)
        side = -(-(dense.window or dense.short_side or _DENSE_SIDE) // _STRIDE) * _STRIDE
    return replace(
        description,
        batch=description.batch or 1,
        height=description.height or side,
        width=description.width or side,
    )


def capture_static(module: ExportGraph, description: Description) -> ExportedProgram:
    """Trace a module at one size, without negative padding and, where they can be merged, with at most `MAX_AXES` axes.

    Args:
        module: As `export_module` or `in_half` returned it.
        description: Of it, with batch, height and width, see `at_one_size`.

    Returns:
        The program, in ATen operators that change nothing in place; those made of others stay whole.

    Raises:
        ConfigError: The net can't be traced.
    """
    with torch.no_grad():
        program: ExportedProgram = capture(module, description).run_decompositions({})
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if _is_crop(node):
            _replace(node, _crop_and_pad(graph, node))
        elif node.target is aten.permute.default and _has_many_axes(node.args[0]):
            _replace(node, _permute_few_axes(graph, node))
        elif node.target is aten.sum.dim_IntList and _has_many_axes(node.args[0]):
            _replace(node, _sum_few_axes(graph, node))
        elif node.target is aten.floor_divide.default and not node.meta["val"].is_floating_point():
            _keep_whole(graph, node)
        elif node.target is aten.alias.default:  # Core ML's converter does not know it
            node.replace_all_uses_with(node.args[0])
    _drop_relaying(graph)
    outputs: Any = graph.output_node().args[0]
    for spec, output in zip(list(program.graph_signature.output_specs), outputs, strict=True):
        program.graph_signature.replace_all_uses(spec.arg.name, output.name)  # the program knows them by name
    graph.eliminate_dead_code()
    graph.lint()
    program.graph_module.recompile()
    return program


def _is_crop(node: Node) -> bool:
    amounts: Any = node.args[1] if node.target in _PADS else ()
    mode = node.args[2:3] if node.target is aten.pad.default else ()
    return any(amount < 0 for amount in amounts) and mode in ((), ("constant",))


def _crop_and_pad(graph: Graph, node: Node) -> Node:
    """Cut off what a negative padding takes away, axis by axis, then pad what is left."""
    x: Any = node.args[0]
    amounts: Any = node.args[1]
    place = _PADS[node.target]
    value = node.args[place] if len(node.args) > place else None
    with graph.inserting_before(node):
        for i in range(0, len(amounts), 2):
            axis = _axes(x) - 1 - i // 2
            size = _shape(x)[axis]
            start, stop = max(0, -amounts[i]), size + min(0, amounts[i + 1])
            if stop - start < size:
                x = _call(graph, aten.slice.Tensor, x, axis, start, stop)
        if max(amounts) > 0:
            x = _call(graph, aten.constant_pad_nd.default, x, [max(0, amount) for amount in amounts], value or 0.0)
    return x  # type: ignore[no-any-return]


def _permute_few_axes(graph: Graph, node: Node) -> Node:
    """Permute runs of axes that stay together as one axis each, and lay the result out in the axes that were asked."""
    x = node.args[0]
    order: Any = node.args[1]
    shape = _shape(x)
    runs: list[list[int]] = []
    for axis in (axis % len(shape) for axis in order if shape[axis] > 1):
        if runs and runs[-1][-1] < axis and all(size == 1 for size in shape[runs[-1][-1] + 1 : axis]):
            runs[-1].append(axis)
        else:
            runs.append([axis])
    sorted_runs = sorted(runs)
    with graph.inserting_before(node):
        merged = _call(graph, aten.view.default, x, [math.prod(shape[axis] for axis in run) for run in sorted_runs])
        permuted = _call(graph, aten.permute.default, merged, [sorted_runs.index(run) for run in runs])
        laid = _call(graph, aten.clone.default, permuted, memory_format=torch.contiguous_format)
        return _call(graph, aten.view.default, laid, list(_shape(node)))


def _sum_few_axes(graph: Graph, node: Node) -> Node:
    """Sum over runs of axes of which all or none are summed as over one axis each."""
    x = node.args[0]
    summed: Any = node.args[1]
    shape = _shape(x)
    wanted = {axis % len(shape) for axis in summed}
    sizes: list[int] = []
    kinds: list[bool] = []
    for axis, size in enumerate(shape):
        if kinds and kinds[-1] == (axis in wanted):
            sizes[-1] *= size
        else:
            sizes.append(size)
            kinds.append(axis in wanted)
    with graph.inserting_before(node):
        merged = _call(graph, aten.view.default, x, sizes)
        total = _call(
            graph, aten.sum.dim_IntList, merged, [i for i, kind in enumerate(kinds) if kind], **dict(node.kwargs)
        )
        return _call(graph, aten.view.default, total, list(_shape(node)))


def _keep_whole(graph: Graph, node: Node) -> None:
    """Make integers of a quotient of integers, which Core ML's converter computes in floating point."""
    with graph.inserting_after(node):
        whole = graph.call_function(aten._to_copy.default, (node,), {"dtype": node.meta["val"].dtype})
    whole.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(whole, delete_user_cb=lambda user: user is not whole)


def _drop_relaying(graph: Graph) -> None:
    """Read through views of views and copies of what lies in order already, so that no tensor of many axes is left."""
    views = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
    for node in graph.nodes:
        if node.target in views:
            while isinstance(base := node.args[0], Node) and base.target in views:
                node.replace_input_with(base, base.args[0])
        elif node.target is aten.clone.default:
            base = node.args[0]
            if isinstance(base, Node) and base.target in views and base.meta["val"].is_contiguous():
                node.replace_all_uses_with(base)


def _call(graph: Graph, target: Any, *args: Any, **kwargs: Any) -> Node:
    """Add a node with what later passes want to know of its value."""
    node = graph.call_function(target, args, kwargs)
    inputs, options = torch.fx.node.map_arg((args, kwargs), lambda one: one.meta["val"])
    node.meta["val"] = target(*inputs, **options)
    return node


def _replace(node: Node, other: Node) -> None:
    other.meta = {**node.meta, **other.meta}
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)


def _has_many_axes(node: Any) -> bool:
    return _axes(node) > MAX_AXES and bool(node.meta["val"].is_contiguous())


def _shape(node: Any) -> Sequence[int]:
    return tuple(int(size) for size in node.meta["val"].shape)


def _axes(node: Any) -> int:
    return len(_shape(node))
