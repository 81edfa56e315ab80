"""Training with a fixed share of the weights at zero, whose places move: prune the smallest, grow as many elsewhere.

Source: SLaK (arXiv 2207.03620, section 3.3) and its code, `sparse_core.py`. After every step of the optimiser dead
weights are zero again; every `every` steps a share of each layer's living weights moves, a share that falls along a
cosine. What differs from the official code: the number of living weights is exact (there, growth is a coin toss for
each weight), what Adam remembers of dead weights is cleared, and the masks are in the checkpoint, so that a resumed run
has the same ones.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, WeightAveraging
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fullfield.data import ImageBatch
from fullfield.errors import ConfigError, nearest
from fullfield.layers.sparsity import (
    apply_masks,
    count_parameters,
    draw_masks,
    erdos_renyi_densities,
    grow_at_random,
    grow_by_gradient,
    masks_of_zeros,
    prunable_weights,
    prune_smallest,
    snip_densities,
    uniform_densities,
)
from fullfield.train.callbacks import warmed_decay
from fullfield.train.module import TrainModule, step_seed
from fullfield.train.settings import TrainSettings

__all__ = ["GROWTHS", "INITS", "PruneAndGrow", "SparsityConfig", "prune_rate", "sparse_averaging", "sparsity_of"]

INITS = ("snip", "erk", "uniform", "zeros")
GROWTHS = ("random", "gradient")
_STREAM = 4098  # stands for a process in `step_seed` that no run has: masks are drawn apart from all else


@dataclass(frozen=True)
class SparsityConfig:
    """How the weights of a run are kept sparse. Defaults are those of the official recipe for SLaK-T."""

    sparsity: float = 0.4
    """Share of the prunable weights that are zero."""
    init: str = "snip"
    """How densities are shared out among layers: "snip" by |w dL/dw| on the first batch, "erk" by their shapes
    (Erdos-Renyi kernel), "uniform"; or "zeros", which keeps those of the weights that the run starts from, as many as
    there are."""
    prune_rate: float = 0.5
    """Share of each layer's living weights that move in the first change (official: 0.5 for SLaK-T, 0.3 for S, B)."""
    growth: str = "random"
    """Where they grow: "random", or "gradient" where its magnitude is largest."""
    every: int = 2000
    """Optimiser steps from one change to the next (official: 2000 for SLaK-T, 100 for S and B)."""
    only: str = ""
    """Regular expression that the names of pruned weights contain; "" for all weights of two and more dimensions."""

    def __post_init__(self) -> None:
        for name in ("sparsity", "prune_rate"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} must be between 0 and 1, both excluded, got {getattr(self, name)!r}")
        for name, known in (("init", INITS), ("growth", GROWTHS)):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(
                    f"unknown {name} of sparsity {value!r}; known: {', '.join(known)}{nearest(str(value), known)}"
                )
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ConfigError(f"every must be a whole number of steps, at least 1, got {self.every!r}")
        try:
            re.compile(self.only)
        except re.error as error:
            raise ConfigError(f"only must be a regular expression, got {self.only!r} ({error})") from error


def sparsity_of(settings: TrainSettings, model: nn.Module, total_steps: int) -> SparsityConfig:
    """Return how a run with the setting `sparsity` keeps its weights sparse.

    Short runs move their zeros at least twenty times; a model that has zeros already (a sparse checkpoint) keeps them.

    Args:
        settings: With `sparsity` above 0.
        model: The model at its start.
        total_steps: Optimiser steps of the run.
    """
    count = count_parameters(model)
    return SparsityConfig(
        settings.sparsity,
        init="zeros" if count.non_zero < count.dense else "snip",
        every=min(SparsityConfig.every, max(1, total_steps // 20)),
    )


def prune_rate(step: int, *, total: int, start: float, floor: float = 0.005) -> float:
    """Return the share of living weights that a change at `step` moves: a cosine from `start` to `floor`.

    Args:
        step: Optimiser steps taken.
        total: Steps of the whole run.
        start: Share at step 0.
        floor: Share at the end.
    """
    return floor + (start - floor) * (1 + math.cos(math.pi * min(step / max(total, 1), 1))) / 2


def sparse_averaging(decay: float) -> WeightAveraging:
    """Return the averaging of `callbacks.averaging` for a sparse run: the average is zero where the weight is.

    A weight that grows starts its average at its own value, as in the official code. Without this the average of
    a pruned weight would fade and never be zero, and the best checkpoint would be dense.

    Args:
        decay: Of the average, less than 1.
    """

    def average(averaged: Tensor, current: Tensor, updates: int | Tensor) -> Tensor:
        n = int(updates)
        if not averaged.is_floating_point():
            return current
        current = current.to(averaged.dtype)
        mean = torch.lerp(averaged, current, 1 - warmed_decay(decay, n))
        return torch.where((averaged == 0) | (current == 0), current, mean)

    return WeightAveraging(use_buffers=True, avg_fn=average)


class PruneAndGrow(Callback):
    """Keep a share of the weights at zero during a run, and move the zeros.

    The masks are drawn at the first batch. They are functions of the seed, the data and the step alone: a run that was
    continued has the same ones as one that was not, and so have all processes of one run.

    Args:
        cfg: How.
        total_steps: Optimiser steps of the whole run.
        seed: Of the run.

    Attributes:
        masks: Name of a weight within the model -> bool, True where it is alive; empty before the first batch.
        steps: Optimiser steps taken.
    """

    def __init__(self, cfg: SparsityConfig, total_steps: int, seed: int) -> None:
        self.cfg = cfg
        self.total_steps = total_steps
        self.seed = seed
        self.masks: dict[str, Tensor] = {}
        self.steps = 0
        self._weights: dict[str, nn.Parameter] = {}
        self._handles: list[RemovableHandle] = []

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart."""
        return {"masks": dict(self.masks), "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.masks, self.steps = dict(state_dict["masks"]), state_dict["steps"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Follow every step of the optimiser, also where gradients are accumulated or a step is skipped.

        Raises:
            ConfigError: No weight is to be pruned.
        """
        self._weights = prunable_weights(_ours(pl_module).task.model, self.cfg.only)
        self.masks = {name: mask.to(self._weights[name].device) for name, mask in self.masks.items()}
        self._handles = [o.register_step_post_hook(self._after_step) for o in trainer.optimizers]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: ImageBatch, batch_idx: int
    ) -> None:
        """Make the masks if there are none yet and the batch has an image that could be read.

        Raises:
            ConfigError: The zeros of the given weights are to be kept, and there are none.
        """
        if self.masks or not len(batch.images):
            return
        if self.cfg.init == "zeros":
            self.masks = masks_of_zeros(self._weights)
            return
        densities = trainer.strategy.broadcast(self._densities(pl_module, batch))  # each process has another batch
        self.masks = draw_masks(self._weights, densities, self._generator())
        apply_masks(self.masks, self._weights)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the optimiser go."""
        self._release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Let the optimiser go."""
        self._release()

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.steps += 1
        apply_masks(self.masks, self._weights, optimizer)  # first of all, so that what grows starts at zero
        if self.steps % self.cfg.every == 0:
            generator = self._generator()
            rate = prune_rate(self.steps, total=self.total_steps, start=self.cfg.prune_rate)
            for name, mask in self.masks.items():
                self.masks[name] = self._moved(mask, self._weights[name], rate, generator)
            apply_masks(self.masks, self._weights, optimizer)

    def _moved(self, mask: Tensor, weight: nn.Parameter, rate: float, generator: torch.Generator) -> Tensor:
        """Return the mask after a change; a weight that is pruned and grows again at once keeps its value."""
        count = math.ceil(rate * int(mask.sum()))
        pruned = prune_smallest(mask, weight, count)
        if self.cfg.growth == "gradient" and weight.grad is not None:
            return grow_by_gradient(pruned, count, weight.grad)
        return grow_at_random(pruned, count, generator)

    def _densities(self, pl_module: pl.LightningModule, batch: ImageBatch) -> dict[str, float]:
        density = 1 - self.cfg.sparsity
        if self.cfg.init == "erk":
            return erdos_renyi_densities(self._weights, density)
        if self.cfg.init == "uniform":
            return uniform_densities(self._weights, density)
        return snip_densities(self._weights, self._gradients(pl_module, batch), density)

    def _gradients(self, pl_module: pl.LightningModule, batch: ImageBatch) -> dict[str, Tensor]:
        """Return dL/dw of one batch and leave no trace: neither in statistics of norms nor in random numbers."""
        buffers = {name: buffer.clone() for name, buffer in pl_module.named_buffers()}
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(step_seed(self.seed, self.steps, _STREAM))
            loss = _ours(pl_module).training_step(batch, 0)
            assert loss is not None  # noqa: S101 - the batch has an image
            gradients = torch.autograd.grad(loss, list(self._weights.values()), allow_unused=True)
        with torch.no_grad():
            for name, buffer in pl_module.named_buffers():
                buffer.copy_(buffers[name])
        pairs = zip(self._weights.items(), gradients, strict=True)
        return {name: torch.zeros_like(weight) if found is None else found for (name, weight), found in pairs}

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(step_seed(self.seed, self.steps, _STREAM))

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _ours(pl_module: pl.LightningModule) -> TrainModule:
    assert isinstance(pl_module, TrainModule)  # noqa: S101 - for the type checker
    return pl_module
