"""What a training step keeps in memory, by count: weights, gradients, optimiser state, and what autograd saves.

A whole step runs in training mode on fake tensors (PyTorch's `FakeTensorMode`): they need no memory, but claim the
model's device, so that every operator takes the path, and saves what it saves, as there. Each storage that autograd
keeps counts once and whole; parameters and buffers are not in it. Storages are followed from their making to their end,
so that what comes and goes inside the step is known too: above all the stage that gradient checkpointing (Chen et al.,
2016) computes again. Under autocast the half-precision copies of the weights count as activations, because autograd
keeps them for the backward pass. Not seen: what a kernel allocates inside itself, and the allocator's own slack.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fullfield.errors import ConfigError, nearest
from fullfield.measure.cost import build, input_size
from fullfield.measure.runners import PRECISIONS, first_tensor
from fullfield.measure.tables import Row

__all__ = ["OPTIMIZERS", "TrainingMemory", "training_memory"]

OPTIMIZERS = {"sgd": 0, "sgd_momentum": 1, "adamw": 2}
"""Numbers that an optimiser keeps for each learned number."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one training step."""

    name: str
    batch: int
    """Images a step."""
    optimizer: str
    """One of `OPTIMIZERS`."""
    precision: str
    """"float32" for the model's own dtype, or autocast to "bf16" or "fp16"."""
    weight_bytes: int
    """Parameters and buffers."""
    gradient_bytes: int
    """Gradients of the parameters that are trained."""
    optimizer_bytes: int
    """State of the optimiser."""
    activation_bytes: int
    """What autograd saves in the forward pass, of the whole batch."""
    working_bytes: int
    """The most that either pass holds beyond `activation_bytes`, gradients of parameters apart: what operators hand to
    one another and, under gradient checkpointing, the stage that is computed again."""

    @property
    def total_bytes(self) -> int:
        """The sum; an upper bound of what tensors hold at once, since activations go while gradients come."""
        held = self.weight_bytes + self.gradient_bytes + self.optimizer_bytes
        return held + self.activation_bytes + self.working_bytes

    def to_row(self) -> Row:
        """Return plain values under the names of a CSV's columns."""
        return {
            "model": self.name,
            "batch": self.batch,
            "optimizer": self.optimizer,
            "precision": self.precision,
            "weight_bytes": self.weight_bytes,
            "gradient_bytes": self.gradient_bytes,
            "optimizer_bytes": self.optimizer_bytes,
            "activation_bytes": self.activation_bytes,
            "working_bytes": self.working_bytes,
            "total_bytes": self.total_bytes,
        }


def training_memory(
    model: str | nn.Module,
    *,
    batch: int = 2,
    optimizer: str = "adamw",
    precision: str = "float32",
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    checkpointing: bool | None = None,
    device: str | torch.device | None = None,
    **arguments: Any,
) -> TrainingMemory:
    """Count the memory of a training step with cross-entropy.

    Args:
        model: A registered name, or a module (B, C, H, W) -> a tensor (B, ...), or anything that holds one. It is left
            as it was; one on the meta device is counted as on a CPU.
        batch: Images a step; BatchNorm needs at least 2 where a map is a single pixel.
        optimizer: "sgd" (no momentum), "sgd_momentum" or "adamw".
        precision: "float32" leaves the model's own dtype; "bf16" and "fp16" run it under autocast.
        image_size: Side, or (height, width), in pixels; None for the model's own size, 224 for a module without one.
        channels: Of an image; None for the model's own.
        checkpointing: Turn gradient checkpointing on or off for the count; None for the model as it is.
        device: Count as if the model were there; None for where it is.
        arguments: Of `create_model`, for a name.

    Raises:
        ModelNotFoundError: No model has that name.
        ConfigError: The optimizer or precision is unknown, the batch is not positive, the model returns no tensor, or
            it has no gradient checkpointing.
    """
    for what, value, known in (("optimizer", optimizer, OPTIMIZERS), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise ConfigError(f"{what} must be one of {', '.join(known)}, got {value!r}{nearest(value, known)}")
    if batch < 1:
        raise ConfigError(f"batch must be at least 1, got {batch}")
    if isinstance(model, str):
        name, module = model, build(model, **arguments)
    else:
        name, module = type(model).__name__, model
    gradient_bytes = _bytes([p for p in module.parameters() if p.requires_grad])
    own, height, width = input_size(module, image_size)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = _fake_copy(module, device).train()
        if checkpointing is not None:
            _set_checkpointing(fake, checkpointing)
        size = (batch, channels or own, height, width)
        activation_bytes, working_bytes = _step_bytes(fake, size, PRECISIONS[precision])
    return TrainingMemory(
        name,
        batch,
        optimizer,
        precision,
        _bytes([*module.parameters(), *module.buffers()]),
        gradient_bytes,
        OPTIMIZERS[optimizer] * gradient_bytes,
        activation_bytes,
        working_bytes,
    )


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _set_checkpointing(module: nn.Module, enable: bool) -> None:
    setter = getattr(module, "set_grad_checkpointing", None)
    try:
        if callable(setter):
            setter(enable)
        elif enable:
            raise AssertionError
    except AssertionError:  # as timm's models say that they have none
        raise ConfigError(f"{type(module).__name__} has no gradient checkpointing; leave it out") from None


def _step_bytes(module: nn.Module, size: tuple[int, int, int, int], dtype: torch.dtype | None) -> tuple[int, int]:
    """Return what the forward pass saves, and the most that either pass holds beyond it, in bytes.

    Args:
        module: With fake parameters and buffers; a fake tensor mode must be on.
        size: Of the batch, (B, C, H, W).
        dtype: Of autocast; None for no autocast.
    """
    saved: dict[int, torch.UntypedStorage] = {}  # held here, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    own = {t.untyped_storage()._cdata for t in (*module.parameters(), *module.buffers())}
    first = next(module.parameters(), torch.empty(0))
    autocast: AbstractContextManager[Any] = torch.autocast(first.device.type, dtype) if dtype else nullcontext()
    with torch.enable_grad(), _Allocations(own) as made:
        images = torch.zeros(size, device=first.device, dtype=first.dtype)
        with saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
            output = first_tensor(module(images))
            labels = torch.zeros(size[0], dtype=torch.int64, device=first.device)
            loss = F.cross_entropy(output.flatten(1).float(), labels)
        activation_bytes = sum(storage.nbytes() for address, storage in saved.items() if address not in own)
        saved.clear()  # or nothing would be freed in the backward pass
        if loss.requires_grad:
            loss.backward()
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return activation_bytes, max(0, made.peak_bytes(without=gradients) - activation_bytes)


class _Allocations(TorchDispatchMode):
    """Follow every storage that operators make while the mode is on.

    Args:
        known: Addresses of storages that were there before.
    """

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self._known = known
        self._alive: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}
        self._sizes: list[int] = []  # by the order of making
        self._events: list[tuple[int, int]] = []  # (number of the storage, 1 when it comes and -1 when it goes)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self._follow(leaf.untyped_storage())
        return output

    def _follow(self, storage: torch.UntypedStorage) -> None:
        address, number = storage._cdata, len(self._sizes)
        if address in self._alive or address in self._known:
            return

        def gone(_: object) -> None:
            self._events.append((number, -1))
            self._alive.pop(address, None)  # the address may be used again

        self._alive[address] = number, weakref.ref(storage, gone)
        self._sizes.append(storage.nbytes())
        self._events.append((number, 1))

    def peak_bytes(self, without: Sequence[Tensor]) -> int:
        """Return the most that was held at one time, not counting the storages of some tensors that still live."""
        left_out = {self._alive[address][0] for t in without if (address := t.untyped_storage()._cdata) in self._alive}
        now = peak = 0
        for number, sign in self._events:
            if number not in left_out:
                now += sign * self._sizes[number]
                peak = max(peak, now)
        return peak


def _fake_copy(module: nn.Module, device: str | torch.device | None) -> nn.Module:
    """Return a copy with fake parameters and buffers; a fake tensor mode must be on."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        where = device or ("cpu" if tensor.is_meta else tensor.device)
        empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=where)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(module, memo)
