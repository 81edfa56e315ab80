"""What a training step keeps in memory, by count: weights, gradients, optimiser state, and what autograd saves.

The forward pass runs in training mode on fake tensors (PyTorch's `FakeTensorMode`): they need no memory, but claim the
model's device, so that every operator takes the path, and saves what it saves, as there. Each storage that autograd
keeps counts once and whole; parameters, buffers and what only one operator needs while it runs are not in it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from fullfield.errors import ConfigError, nearest
from fullfield.measure.cost import build, input_size
from fullfield.measure.runners import first_tensor
from fullfield.measure.tables import Row

__all__ = ["OPTIMIZERS", "TrainingMemory", "training_memory"]

OPTIMIZERS = {"sgd": 0, "sgd_momentum": 1, "adamw": 2}
"""Numbers that an optimiser keeps for each learned number."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one training step; `total_bytes` is what is held when the backward pass begins, plus all gradients."""

    name: str
    batch: int
    """Images a step."""
    optimizer: str
    """One of `OPTIMIZERS`."""
    weight_bytes: int
    """Parameters and buffers."""
    gradient_bytes: int
    """Gradients of the parameters that are trained."""
    optimizer_bytes: int
    """State of the optimiser."""
    activation_bytes: int
    """What autograd saves in the forward pass, of the whole batch."""

    @property
    def total_bytes(self) -> int:
        """The sum; an upper bound, since activations go while gradients come."""
        return self.weight_bytes + self.gradient_bytes + self.optimizer_bytes + self.activation_bytes

    def to_row(self) -> Row:
        """Return plain values under the names of a CSV's columns."""
        return {
            "model": self.name,
            "batch": self.batch,
            "optimizer": self.optimizer,
            "weight_bytes": self.weight_bytes,
            "gradient_bytes": self.gradient_bytes,
            "optimizer_bytes": self.optimizer_bytes,
            "activation_bytes": self.activation_bytes,
            "total_bytes": self.total_bytes,
        }


def training_memory(
    model: str | nn.Module,
    *,
    batch: int = 2,
    optimizer: str = "adamw",
    image_size: int | tuple[int, int] | None = None,
    **arguments: Any,
) -> TrainingMemory:
    """Count the memory of a training step with cross-entropy in the model's own dtype.

    Args:
        model: A registered name, or a module (B, C, H, W) -> a tensor (B, ...), or anything that holds one. It is left
            as it was; one on the meta device is counted as on a CPU.
        batch: Images a step; BatchNorm needs at least 2 where a map is a single pixel.
        optimizer: "sgd" (no momentum), "sgd_momentum" or "adamw".
        image_size: Side, or (height, width), in pixels; None for the model's own size, 224 for a module without one.
        arguments: Of `create_model`, for a name.

    Raises:
        ModelNotFoundError: No model has that name.
        ConfigError: The optimizer is unknown, the batch is not positive, or the model returns no tensor.
    """
    if optimizer not in OPTIMIZERS:
        raise ConfigError(
            f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {optimizer!r}{nearest(optimizer, OPTIMIZERS)}"
        )
    if batch < 1:
        raise ConfigError(f"batch must be at least 1, got {batch}")
    if isinstance(model, str):
        name, module = model, build(model, **arguments)
    else:
        name, module = type(model).__name__, model
    trained = [p for p in module.parameters() if p.requires_grad]
    gradient_bytes = _bytes(trained)
    return TrainingMemory(
        name,
        batch,
        optimizer,
        _bytes([*module.parameters(), *module.buffers()]),
        gradient_bytes,
        OPTIMIZERS[optimizer] * gradient_bytes,
        _activation_bytes(module, batch, input_size(module, image_size)),
    )


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _activation_bytes(module: nn.Module, batch: int, size: tuple[int, int, int]) -> int:
    saved: dict[int, torch.UntypedStorage] = {}  # held here, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = _fake_copy(module).train()
        first = next(fake.parameters(), torch.empty(0))
        images = torch.zeros(batch, *size, device=first.device, dtype=first.dtype)
        with torch.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor):
            output = first_tensor(fake(images))
            loss = F.cross_entropy(
                output.flatten(1).float(), torch.zeros(batch, dtype=torch.int64, device=first.device)
            )
        own = {t.untyped_storage()._cdata for t in (*fake.parameters(), *fake.buffers())}
        del loss
    return sum(storage.nbytes() for address, storage in saved.items() if address not in own)


def _fake_copy(module: nn.Module) -> nn.Module:
    """Return a copy with fake parameters and buffers; a fake tensor mode must be on."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        device = "cpu" if tensor.is_meta else tensor.device
        empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(module, memo)
