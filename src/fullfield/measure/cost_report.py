"""What a model costs per module and per kind of operator: parameters, MACs, FLOPs, softmax elements, bytes.

All figures are of one image in inference. They come from one pass on the meta device where the model allows that, so
they neither need memory nor depend on the machine. Bytes and arithmetic intensity are those of compulsory traffic, see
`cost_trace.py`; `roofline.py` makes a bound on the latency of them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fullfield.errors import ConfigError
from fullfield.measure.cost import Cost, build, input_size
from fullfield.measure.cost_trace import KINDS, OperatorCost, Trace, trace_operators
from fullfield.measure.tables import Row, rows_to_dataframe, write_rows

__all__ = ["CostGroup", "CostReport", "ModuleParams", "cost_report", "meta_copy"]


@dataclass(frozen=True)
class ModuleParams:
    """One module of the tree."""

    name: str
    """Path; "" for the model itself."""
    type: str
    """Name of the class."""
    params: int
    """Learned numbers of its own, without those of its submodules; a shared parameter counts where it is first."""


@dataclass(frozen=True)
class CostGroup:
    """The sum over the operators of a module or of a kind."""

    name: str
    """Path of the module, or kind of operator."""
    type: str
    """Class of the module; "" for a kind."""
    params: int | None
    """Learned numbers; None for a kind."""
    operators: tuple[OperatorCost, ...]

    @property
    def flops(self) -> int:
        """Floating-point operations."""
        return sum(op.flops for op in self.operators)

    @property
    def macs(self) -> int:
        """Multiply-accumulates: FLOPs / 2."""
        return self.flops // 2

    @property
    def softmax_elements(self) -> int:
        """Elements that a softmax computes."""
        return sum(op.softmax_elements for op in self.operators)

    @property
    def weight_bytes(self) -> int:
        """Parameters that the operators read, whatever the batch."""
        return sum(op.weight_bytes for op in self.operators)

    @property
    def map_bytes(self) -> int:
        """Inputs and outputs of the operators, for one image."""
        return sum(op.map_bytes for op in self.operators)

    @property
    def intensity(self) -> float:
        """FLOPs a byte at batch 1; 0 where nothing is moved."""
        moved = self.weight_bytes + self.map_bytes
        return self.flops / moved if moved else 0.0

    def to_row(self, whole_flops: int) -> Row:
        """Return plain values under the names of the CSV's columns.

        Args:
            whole_flops: Of the model, for the share.
        """
        return {
            "name": self.name,
            "type": self.type,
            "calls": len(self.operators),
            "params": self.params,
            "macs": self.macs,
            "flops": self.flops,
            "share": round(self.flops / whole_flops, 4) if whole_flops else 0.0,
            "softmax_elements": self.softmax_elements,
            "weight_bytes": self.weight_bytes,
            "map_bytes": self.map_bytes,
            "flops_per_byte": round(self.intensity, 2),
        }


@dataclass(frozen=True)
class CostReport:
    """What `cost_report` counted."""

    cost: Cost
    """The sums that `cost` gives too."""
    modules: tuple[ModuleParams, ...]
    """The tree, parents before children."""
    operators: tuple[OperatorCost, ...]
    """Every counted call, in the order of running."""
    hook_macs: int
    """What a counter on module hooks that knows convolutions and linear layers would see. It also misses layers whose
    weights are used without calling them, as RaGLU and gnConv do to save a copy."""
    element_bytes: int
    """Bytes of a real number in the figures of bytes: 4, of float32, unless the model has another dtype."""

    @property
    def total(self) -> CostGroup:
        """The whole model as one group."""
        return CostGroup(self.cost.name, self.modules[0].type, self.cost.params, self.operators)

    @property
    def missed_by_hooks(self) -> float:
        """Share of the MACs that a counter on module hooks misses, 0 to 1."""
        return 1 - self.hook_macs / self.cost.macs if self.cost.macs else 0.0

    @property
    def dynamic_share(self) -> float:
        """Share of the MACs in products without a learned operand, as attention's and RPWConv's, 0 to 1."""
        dynamic = sum(op.flops for op in self.operators if not op.weight_bytes and op.kind != "FFT")
        return dynamic / self.cost.flops if self.cost.flops else 0.0

    def by_operator(self) -> tuple[CostGroup, ...]:
        """Return the sum of every kind of operator that runs, in the order of `KINDS`."""
        groups = ((kind, tuple(op for op in self.operators if op.kind == kind)) for kind in KINDS)
        return tuple(CostGroup(kind, "", None, operators) for kind, operators in groups if operators)

    def by_module(self, depth: int = 2) -> tuple[CostGroup, ...]:
        """Return the sums of the modules `depth` names below the model; together they are the whole.

        A module above that depth has a group of its own for what it does outside its submodules.

        Args:
            depth: Names in a path: 0 is the model, 1 its children ("stages"), 2 theirs ("stages.0").

        Raises:
            ConfigError: The depth is negative.
        """
        if depth < 0:
            raise ConfigError(f"depth must be at least 0, got {depth}")
        operators: dict[str, list[OperatorCost]] = {}
        params: dict[str, int] = {}
        for op in self.operators:
            operators.setdefault(ancestor(op.module, depth), []).append(op)
        for module in self.modules:
            name = ancestor(module.name, depth)
            params[name] = params.get(name, 0) + module.params
        return tuple(
            CostGroup(m.name, m.type, params.get(m.name, 0), tuple(operators.get(m.name, ())))
            for m in self.modules
            if operators.get(m.name) or (params.get(m.name) and ancestor(m.name, depth) == m.name)
        )

    def to_rows(self, depth: int = 2) -> list[Row]:
        """Return plain rows: the total, then the kinds of operators, then the modules at a depth.

        Args:
            depth: As in `by_module`.
        """
        height, width = self.cost.input_size[1:]
        whole = {"model": self.cost.name, "height": height, "width": width}
        shares = {"missed_by_hooks": round(self.missed_by_hooks, 4), "dynamic_share": round(self.dynamic_share, 4)}
        parts: tuple[tuple[str, Iterable[CostGroup]], ...] = (
            ("total", [self.total]),
            ("operator", self.by_operator()),
            ("module", self.by_module(depth)),
        )
        return [
            whole | {"part": part} | group.to_row(self.cost.flops) | (shares if part == "total" else {})
            for part, groups in parts
            for group in groups
        ]

    def to_dataframe(self, depth: int = 2) -> Any:
        """Return the rows as a pandas data frame.

        Args:
            depth: As in `by_module`.
        """
        return rows_to_dataframe(self.to_rows(depth))

    def save(self, path: str | Path, depth: int = 2) -> Path:
        """Write the rows to a .csv or .json file; see `tables.write_rows`.

        Args:
            path: The file; its folder must exist.
            depth: As in `by_module`.
        """
        return write_rows(self.to_rows(depth), path)

    def plot(self, path: str | Path, depth: int = 2) -> Path:
        """Draw the MACs of every module, coloured by kind of operator, to a .png, .svg or .pdf file.

        Args:
            path: The file; its folder must exist.
            depth: As in `by_module`.
        """
        from fullfield.measure.cost_plot import plot_cost

        return plot_cost(self, path, depth)


def ancestor(name: str, depth: int) -> str:
    """Return the first `depth` names of a module's path."""
    return ".".join(name.split(".")[:depth])


def cost_report(
    model: str | nn.Module, *, image_size: int | tuple[int, int] | None = None, **arguments: Any
) -> CostReport:
    """Count what a model costs, per module and kind of operator.

    Args:
        model: A registered name, or a module (B, C, H, W) -> anything, which is left as it was.
        image_size: Side, or (height, width), in pixels; None for the model's own size, 224 for a module without one.
        arguments: Of `create_model`, for a name.

    Returns:
        Counts for one image in inference.

    Raises:
        ModelNotFoundError: No model has that name.
    """
    if isinstance(model, str):
        name, module = model, build(model, **arguments)
    else:
        name, module = type(model).__name__, model
    size = input_size(module, image_size)
    trace = _trace(module, size)
    flops = sum(op.flops for op in trace.operators)
    params = sum(p.numel() for p in module.parameters())
    floating = [p for p in module.parameters() if p.is_floating_point()]
    return CostReport(
        Cost(name, params, flops // 2, flops, size),
        _tree(module),
        trace.operators,
        trace.hook_flops // 2,
        floating[0].element_size() if floating else 4,
    )


def _trace(module: nn.Module, size: tuple[int, int, int]) -> Trace:
    """Trace on the meta device; a module that does not run there (a tensor that is no buffer) runs where it is."""
    first = next(module.parameters(), torch.empty(0))
    try:
        return trace_operators(meta_copy(module), torch.zeros(1, *size, device="meta", dtype=first.dtype))
    except Exception:  # an error that is the model's own comes again, and is seen
        return trace_operators(module, torch.zeros(1, *size, device=first.device, dtype=first.dtype))


def meta_copy(module: nn.Module) -> nn.Module:
    """Return a copy of a module without memory for its parameters and buffers.

    Args:
        module: Left as it was.
    """
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        empty: Tensor = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(module, memo)


def _tree(module: nn.Module) -> tuple[ModuleParams, ...]:
    seen: set[int] = set()
    rows = []
    for name, part in module.named_modules():
        own = [p for p in part.parameters(recurse=False) if id(p) not in seen]
        seen.update(map(id, own))
        rows.append(ModuleParams(name, type(part).__name__, sum(p.numel() for p in own)))
    return tuple(rows)
