"""Training with weights, gradients and optimiser state divided among the processes (FSDP2), through Lightning.

Source: Zhao et al., "PyTorch FSDP", 2023, and Rajbhandari et al., "ZeRO", stage 3, 2020; PyTorch's `fully_shard`. Each
process keeps a part of every tensor along its first axis. A block's weights are put together just before it runs and
let go after it, so beside its own share a process holds one block at a time, and what is in no block.

A state looks as it does without sharding: one file with whole tensors, in the optimiser's own order, that the first
process writes. So any number of processes, and DDP, can go on from it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from fullfield.data import ImageBatch
from fullfield.errors import ConfigError
from fullfield.train.module import TrainModule
from fullfield.train.settings import TrainSettings

__all__ = ["ShardedAveraging", "ShardedModule", "ShardedStrategy", "blocks_of", "check_strategy", "shard", "whole"]


def check_strategy(settings: TrainSettings, processes: int) -> None:
    """Refuse what does not go with sharding.

    Args:
        settings: As given.
        processes: That will train together.

    Raises:
        ConfigError: There is one process, or a setting needs whole weights.
    """
    if settings.strategy != "fsdp":
        return
    if processes < 2:
        raise ConfigError(
            "--strategy fsdp divides the weights among processes, and there is one; use --devices 2 or more, or"
            " --strategy ddp"
        )
    if settings.sparsity:
        raise ConfigError(
            f"--strategy fsdp can't move the places of sparse weights (--sparsity {settings.sparsity}); use"
            " --sparsity 0, or --strategy ddp"
        )
    if settings.precision == "16":
        raise ConfigError("--strategy fsdp does not scale the loss as --precision 16 needs; use --precision bf16")


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of a model, inner ones first: the modules that its layer groups are counted by.

    They are those whose whole name fits a pattern without a place of its own in `group_matcher()["blocks"]`, which our
    backbones and most of timm's have for layer-wise decay. A model that has no such method has no known blocks.
    """
    matcher = getattr(model, "group_matcher", None)
    found = matcher(coarse=False).get("blocks", []) if callable(matcher) else []
    counted = [(found, None)] if isinstance(found, str) else found
    patterns = [re.compile(pattern) for pattern, place in counted if place is None]
    return [
        module
        for name, module in reversed(list(model.named_modules()))
        if any(pattern.fullmatch(name) for pattern in patterns)
        and not isinstance(module, nn.ModuleList | nn.ModuleDict)
        and any(True for _ in module.parameters())
    ]


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Divide a model's parameters among processes, in place: each block by itself, then all that is left.

    Args:
        model: Equal in all processes. Names of parameters and buffers stay; buffers are not divided.
        mesh: One axis, of the processes.

    Raises:
        ConfigError: A parameter has no axis.
    """
    for name, parameter in model.named_parameters():
        if not parameter.ndim:
            raise ConfigError(
                f"--strategy fsdp divides parameters along their first axis, and {name} has none; use --strategy ddp"
            )
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # shards are rows in memory
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(value: Any, *, keep: bool) -> Any:
    """Return nested dicts and lists with each divided tensor put together, on the CPU; all processes must call it.

    Args:
        value: Such as a `state_dict()` of a model or optimiser.
        keep: Whether this process wants the result; else tensors are let go one by one, and it is None.
    """
    if isinstance(value, dict):
        items = {name: whole(item, keep=keep) for name, item in value.items()}
        return items if keep else None
    if isinstance(value, list):
        entries = [whole(item, keep=keep) for item in value]
        return entries if keep else None
    if isinstance(value, DTensor):
        value = value.full_tensor()
    if not keep:
        return None
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _divide_like(value: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor, which all processes have, divided as another one is."""
    if not isinstance(like, DTensor):
        return value
    value = value.to(like.device, like.dtype).contiguous()
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def _divide_model_state(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Return the whole state of a module with its tensors divided as the module's own."""
    own = module.state_dict()
    return {name: _divide_like(value, own[name]) if name in own else value for name, value in state.items()}


def _divide_optimizer_state(state: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """Return the whole state of an optimiser with its tensors divided as the parameters that they belong to."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers: Iterable[int] = [number for group in state["param_groups"] for number in group["params"]]
    divided = {}
    for number, parameter in zip(numbers, parameters, strict=True):
        if number in state["state"]:
            divided[number] = {
                name: _divide_like(value, parameter) if getattr(value, "shape", None) == parameter.shape else value
                for name, value in state["state"][number].items()
            }
    return {"state": divided, "param_groups": state["param_groups"]}


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's FSDP2 over all processes, with states like those of any other strategy.

    Lightning's own whole states name an optimiser's entries by the order of the model's parameters, which is not the
    order of our parameter groups, and go around the checkpoint plugin when they are read.

    Args:
        processes: How many there are.
    """

    def __init__(self, processes: int) -> None:
        super().__init__(data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether Lightning calls `load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the whole state of the model in the first process; all must call it."""
        assert self.lightning_module is not None  # noqa: S101 - for the type checker
        return whole(dict(self.lightning_module.state_dict()), keep=self.is_global_zero) or {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the whole state of an optimiser in the first process; all must call it."""
        return whole(optimizer.state_dict(), keep=self.is_global_zero) or {}

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a state, whole, in each process; tensors and plain values alone."""
        del weights_only  # Lightning forgets it on this way
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process's part of the model's state."""
        assert self.lightning_module is not None  # noqa: S101 - for the type checker
        state = _divide_model_state(checkpoint["state_dict"], self.lightning_module)
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's part of the optimisers' states."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(_divide_optimizer_state(state, optimizer))


class ShardedModule(TrainModule):
    """A task under training whose model is divided among the processes.

    Every pass through the model is a meeting of all processes, in validation too. Those that have fewer validation
    batches than others pass a blank one.
    """

    _outline: nn.Module | None = None

    def configure_model(self) -> None:
        """Divide the model; Lightning calls this once the processes have met."""
        if self._outline is not None or self.device_mesh is None:
            return
        model = self.task.model
        bare: dict[int, Any] = {
            id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in model.parameters()
        }
        # around Module's own attributes: it is no part of this module
        object.__setattr__(self, "_outline", copy.deepcopy(model, bare))
        shard(model, self.device_mesh["data_parallel"])

    def whole_model(self) -> nn.Module | None:
        """Return a copy of the model with all its weights, on the CPU; None in all processes but the first."""
        state = whole(dict(self.task.model.state_dict()), keep=self.processes.first)
        return None if state is None else self._filled(state)

    def divided_twin(self) -> nn.Module:
        """Return a module with this one's divided parameters and its buffers, by the same names, that can be copied."""
        twin = nn.Module()
        twin.task = nn.Module()
        twin.task.model = self._filled(self.task.model.state_dict())
        return twin

    def _filled(self, state: Mapping[str, Tensor]) -> nn.Module:
        """Return the model as it was before it was divided, which can't be copied since, with a state of it."""
        model = copy.deepcopy(self._outline)
        assert model is not None  # noqa: S101 - configure_model has made it
        model.load_state_dict(state, assign=True)
        return model

    def on_after_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> ImageBatch:
        """Lay out images as `channels_last` asks: parts of weights can't be laid out so."""
        if not self.settings.channels_last:
            return batch
        return batch._replace(images=batch.images.contiguous(memory_format=torch.channels_last))

    def on_validation_epoch_start(self) -> None:
        """Start the figures over, take the first process's buffers, and make up for batches that others have more."""
        super().on_validation_epoch_start()
        for buffer in self.task.model.buffers():
            dist.broadcast(buffer, src=0)
        loader: Any = self.trainer.val_dataloaders
        order = loader.sampler
        most = -(-order.total // order.world_size)
        for _ in range(-(-most // loader.batch_size) - len(loader)):
            self._pass_blank()

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Count one validation batch."""
        if not len(batch.images):
            self._pass_blank()
        super().validation_step(batch, batch_idx)

    def _pass_blank(self) -> None:
        self.task(self.blank_images())


class ShardedAveraging(WeightAveraging):
    """Lightning's average of the weights, divided as they are. Its part of a state is what it is without sharding."""

    @property
    def state_key(self) -> str:
        """The name of what it averages undivided, whose states it takes."""
        return WeightAveraging.__qualname__

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Wait: the model is not divided yet."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with the weights that there are."""
        assert isinstance(pl_module, ShardedModule)  # noqa: S101 - for the type checker
        self._average_model = AveragedModel(pl_module.divided_twin(), use_buffers=self._use_buffers, **self._kwargs)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the average, whole, beside the weights in the first process's state; all must call it."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        checkpoint["state_dict"] = whole(checkpoint["state_dict"], keep=trainer.is_global_zero) or {}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take this process's part of the average and of the weights."""
        for part in checkpoint.keys() & {"state_dict", "current_model_state"}:
            checkpoint[part] = _divide_model_state(checkpoint[part], pl_module)
        super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def _swap_models(self, pl_module: pl.LightningModule) -> None:
        _let_go(pl_module)
        super()._swap_models(pl_module)

    def _copy_average_to_current(self, pl_module: pl.LightningModule) -> None:
        _let_go(pl_module)
        super()._copy_average_to_current(pl_module)


def _let_go(module: nn.Module) -> None:
    """Divide weights again that a validation pass has left whole: they would outlive a change of their parts."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
