"""Counting the norms that could still be folded into a convolution, from what runs and not from module names.

The count watches one forward pass: a BatchNorm can be folded if it is the only reader of a convolution's output,
or if dense 1x1 convolutions alone read its own output.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


class _Recorder(TorchFunctionMode):
    """Keep who made every tensor and who read it."""

    def __init__(self) -> None:
        super().__init__()
        self.makers: dict[int, Callable[..., Any]] = {}
        self.readers: dict[int, list[tuple[Callable[..., Any], Sequence[Any]]]] = defaultdict(list)
        self.norms: list[tuple[Tensor, Tensor]] = []  # (input, output)
        self.alive: list[Any] = []  # an id is unique only as long as its tensor lives

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        self.alive.append((args, made))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(made)):
            for read in tree_leaves((args, kwargs)):
                if isinstance(read, Tensor):
                    self.readers[id(read)].append((func, args))
        if isinstance(made, Tensor):
            self.makers[id(made)] = func
            if func is F.batch_norm:
                self.norms.append((args[0], made))
        return made


def foldable_norms(model: nn.Module, x: Tensor) -> int:
    """Return how many BatchNorms of a forward pass in eval mode could be folded into a convolution.

    Args:
        model: In eval mode, on any device; the meta device will do.
        x: Its input.
    """
    with torch.no_grad(), _Recorder() as recorder:
        model(x)
    return sum(_is_foldable(read, made, recorder) for read, made in recorder.norms)


def _is_foldable(read: Tensor, made: Tensor, recorder: _Recorder) -> bool:
    if recorder.makers.get(id(read)) is torch.conv2d and len(recorder.readers[id(read)]) == 1:
        return True
    readers = recorder.readers[id(made)]
    return bool(readers) and all(func is torch.conv2d and _is_dense_1x1(args[1], made) for func, args in readers)


def _is_dense_1x1(weight: Tensor, x: Tensor) -> bool:
    return weight.shape[1:] == (x.shape[1], 1, 1)
