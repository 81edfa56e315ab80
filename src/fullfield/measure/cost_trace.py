"""Every counted operator of one forward pass: module, kind, FLOPs, compulsory bytes and softmax elements.

A dispatch mode sees the operators that really run, whoever calls them, and takes their FLOPs from the formulas of
`torch.utils.flop_counter`; so the sum is that of `FlopCounterMode`. What has no formula (norms, activations, sums,
copies) counts nothing.

Compulsory bytes of a convolution, matrix product, attention or Fourier transform are its weights, inputs and output,
each once, as if the cache held all else. Attention that runs as two matrix products around a softmax is found by
following the tensors from one to the other: its score matrices never need to be in memory (Dao et al.,
"FlashAttention", 2022), so they are not in its bytes, and the figures do not depend on the path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["KINDS", "OperatorCost", "Trace", "trace_operators"]

KINDS = ("convolution", "depthwise convolution", "matrix product", "attention", "FFT", "softmax", "other")
"""The kinds of operators; "softmax" is one that is no part of attention."""

_aten = torch.ops.aten
_FFTS = {_aten._fft_r2c, _aten._fft_c2r, _aten._fft_c2c}
_CONVOLUTIONS = {_aten.convolution, _aten._convolution, _aten.cudnn_convolution, _aten.convolution_overrideable}
_PRODUCTS = {_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm}
_SOFTMAXES = {_aten._softmax, _aten._safe_softmax}


@dataclass(frozen=True)
class OperatorCost:
    """One call of one operator on one image."""

    module: str
    """Path of the innermost module that was running; "" for the model itself."""
    kind: str
    """One of `KINDS`."""
    operator: str
    """Name in PyTorch's dispatcher, as "aten.convolution"."""
    flops: int
    """2 x MACs; 0 for a softmax."""
    weight_bytes: int
    """Parameters read, or what was computed from parameters alone."""
    map_bytes: int
    """Inputs read and outputs written, without score matrices."""
    softmax_elements: int
    """Outputs of a softmax; of attention, its score matrices."""


@dataclass(frozen=True)
class Trace:
    """What one forward pass of one image ran."""

    operators: tuple[OperatorCost, ...]
    """In the order of running."""
    hook_flops: int
    """What a counter on module hooks would see: the calls of `nn.Conv2d` and `nn.Linear`, by their own shapes."""


def trace_operators(module: nn.Module, image: Tensor) -> Trace:
    """Run a module once in inference and list its operators.

    Args:
        module: (1, C, H, W) -> anything; its mode and hooks are left as they were.
        image: (1, C, H, W), on the module's device, which may be meta.
    """
    stack = [""]
    hooked: list[int] = []
    recorder = _Recorder(stack, [*module.parameters(), *module.buffers()])
    training = {m: m.training for m in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), _follow(module, stack, hooked), recorder:
            module(image)
    finally:
        for part, mode in training.items():
            part.training = mode
    return Trace(tuple(recorder.operators), sum(hooked))


@contextmanager
def _follow(module: nn.Module, stack: list[str], hooked: list[int]) -> Iterator[None]:
    """Keep the path of the running module on top of `stack` and append the FLOPs that hooks see to `hooked`."""

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: stack.append(name)

    def leave(part: nn.Module, _inputs: Any, output: Any) -> None:
        stack.pop()
        if isinstance(part, nn.Conv2d | nn.Linear) and isinstance(output, Tensor):
            hooked.append(2 * part.weight[0].numel() * output.numel())

    handles = []
    for name, part in module.named_modules():
        handles.append(part.register_forward_pre_hook(enter(name), prepend=True))
        handles.append(part.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Recorder(TorchDispatchMode):
    """Appends an `OperatorCost` for every operator that has a FLOP formula or is a softmax."""

    def __init__(self, stack: Sequence[str], weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.operators: list[OperatorCost] = []
        self._stack = stack
        self._weight_storages = {weight.untyped_storage()._cdata for weight in weights}
        # Score matrices on their way into a softmax, with the index and bytes of the product that made
        # them, and out of it.
        self._scores = WeakIdKeyDictionary()
        self._attention_weights = WeakIdKeyDictionary()
        self._derived_weights = WeakIdKeyDictionary()  # computed from weights alone, as a resized filter

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet in _SOFTMAXES:
            return self._softmax(packet, args, func(*args, **kwargs))
        formula: Any = flop_counter.flop_registry.get(packet)
        if formula is None:
            if func is not torch.ops.prim.device.default:
                with self:
                    parts = func.decompose(*args, **kwargs)
                if parts is not NotImplemented:
                    return parts
            return self._propagate(args, func(*args, **kwargs))
        output = func(*args, **kwargs)
        self._count(packet, args, output, int(formula(*args, **kwargs, out_val=output)))
        return output

    def _count(self, packet: Any, args: tuple[Any, ...], output: Any, flops: int) -> None:
        kind = _kind(packet, args)
        inputs = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        weights = [x for x in inputs if self._is_weight(x)]
        maps = [x for x in inputs if not any(x is weight for weight in weights)]
        result = output if isinstance(output, Tensor) else output[0]
        if packet in _PRODUCTS and any(x in self._attention_weights for x in maps):
            kind = "attention"
            maps = [x for x in maps if x not in self._attention_weights]
        elements = _attention_elements(*inputs[:2]) if kind == "attention" and packet not in _PRODUCTS else 0
        if packet in _PRODUCTS and not weights:
            self._scores[result] = (len(self.operators), _bytes(result))
        map_bytes = sum(map(_bytes, (*maps, result)))
        self._append(packet, kind, flops, sum(map(_bytes, weights)), map_bytes, elements)

    def _softmax(self, packet: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        kind = "softmax"
        if args[0] in self._scores:
            kind = "attention"
            index, score_bytes = self._scores[args[0]]
            product = self.operators[index]
            if product.kind != kind:
                self.operators[index] = replace(product, kind=kind, map_bytes=product.map_bytes - score_bytes)
            self._attention_weights[output] = True
        self._append(packet, kind, 0, 0, 0, output.numel())
        return output

    def _append(self, packet: Any, kind: str, flops: int, weight_bytes: int, map_bytes: int, elements: int) -> None:
        name = str(packet)
        self.operators.append(OperatorCost(self._stack[-1], kind, name, flops, weight_bytes, map_bytes, elements))

    def _is_weight(self, x: Tensor) -> bool:
        return x in self._derived_weights or x.untyped_storage()._cdata in self._weight_storages

    def _propagate(self, args: tuple[Any, ...], output: Any) -> Any:
        """Mark what is a view, copy, scaling or masking of score matrices, or made of weights alone."""
        if isinstance(output, Tensor):
            inputs = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
            for x in inputs:
                if x.numel() == output.numel():
                    for marked in (self._scores, self._attention_weights):
                        if x in marked:
                            marked[output] = marked[x]
            if inputs and all(map(self._is_weight, inputs)):
                self._derived_weights[output] = True
        return output


def _kind(packet: Any, args: tuple[Any, ...]) -> str:
    if packet in _FFTS:
        return "FFT"
    if packet in _PRODUCTS:
        return "matrix product"
    if packet in _CONVOLUTIONS:
        groups = args[8] if packet in (_aten.convolution, _aten._convolution) else args[0].shape[1] // args[1].shape[1]
        return "depthwise convolution" if groups == args[0].shape[1] > 1 else "convolution"
    name = str(packet)
    if "depthwise" in name:
        return "depthwise convolution"
    return "attention" if "attention" in name else "other"


def _attention_elements(query: Tensor, key: Tensor) -> int:
    """Return the elements of the score matrices of q (..., tokens, width) and k."""
    return math.prod(query.shape[:-1]) * key.shape[-2]


def _bytes(x: Tensor) -> int:
    """Return the bytes of the distinct elements; a broadcast dimension is in memory once."""
    if not x.numel():
        return 0
    distinct = (size for size, stride in zip(x.shape, x.stride(), strict=True) if stride)
    return math.prod(distinct) * x.element_size()
