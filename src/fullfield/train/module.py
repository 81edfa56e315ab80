"""The bridge between a task and Lightning's Trainer: steps, optimiser and schedule.

All randomness of a step (mixing, dropout, stochastic depth) is a function of the seed, the process and the step's
number, set anew before each step. A run that was continued therefore draws the same numbers as one that was not.
"""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from fullfield.errors import FullfieldError, TrainingError
from fullfield.tasks.task import Result, Task
from fullfield.train.image_sizes import resize_batch, side_at
from fullfield.train.parameter_groups import parameter_groups
from fullfield.train.processes import ALONE, Processes
from fullfield.train.settings import TrainSettings

__all__ = ["TrainModule", "step_seed", "warmup_cosine"]


def warmup_cosine(step: int, *, total: int, warmup: int, floor: float = 0.01) -> float:
    """Return the factor on the peak learning rate: linear from 0 over `warmup` steps, then a cosine to `floor`.

    Args:
        step: Steps taken, from 0.
        total: Steps of the whole run.
        warmup: Steps of the rise.
        floor: Factor at the end.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    share = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return a seed for one step of one process; neighbouring steps give unrelated ones (splitmix64)."""
    mixed = (seed * 1_000_003 + step) * 4099 + rank
    mixed = (mixed + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return mixed ^ (mixed >> 31)


class TrainModule(pl.LightningModule):
    """A task under training.

    Args:
        task: Model and loss.
        settings: Fitted settings.
        total_steps: Optimiser steps of the whole run.
        paths: File of each training image, to name the batch in which the loss failed.
        processes: That train together.
    """

    def __init__(
        self,
        task: Task,
        settings: TrainSettings,
        total_steps: int,
        paths: list[str],
        processes: Processes = ALONE,
    ) -> None:
        super().__init__()
        self.processes = processes
        self.batch_loss = 0.0
        """Mean loss of this process's last batch; 0 where none of its images could be read."""
        self.task = task
        self.settings = settings
        self.total_steps = total_steps
        self.retuned = False
        """Whether the optimiser of the state that a run goes on from takes the rates of the settings."""
        self._paths = paths
        self._metrics = task.metrics(synced=True)

    def on_train_start(self) -> None:
        """Put changed rates into the optimiser and schedule that came with the state."""
        if not self.retuned:
            return
        fresh = self.configure_optimizers()
        optimizer = self.trainer.optimizers[0]
        scheduler: Any = self.trainer.lr_scheduler_configs[0].scheduler
        scheduler.base_lrs = fresh["lr_scheduler"]["scheduler"].base_lrs
        factor = scheduler.lr_lambdas[0](scheduler.last_epoch)
        for group, new in zip(optimizer.param_groups, fresh["optimizer"].param_groups, strict=True):
            group |= {"initial_lr": new["initial_lr"], "weight_decay": new["weight_decay"]}
            group["lr"] = new["initial_lr"] * factor

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the step's randomness."""
        torch.manual_seed(step_seed(self.settings.seed, self.current_epoch * 10_000_019 + batch_idx, self.global_rank))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """Return the batch's loss; None skips the step of one process where none of its images could be read.

        With several processes the loss is weighed by the share of readable images, so that the mean over processes,
        which is what their gradients are the gradient of, is the mean over images.

        Raises:
            TrainingError: The loss is not finite, or the batch is a single image that BatchNorm can't normalise.
        """
        if self.settings.image_size_start is not None:
            batch = batch._replace(images=resize_batch(batch.images, self._side()))
        count = len(batch.images)
        (images,) = self.processes.sum([count])
        self.batch_loss = 0.0
        if not images and self.processes.size == 1:  # Lightning refuses to skip a step of several
            return None
        if not count:  # the other processes wait for this one's gradients: give them zeros
            return self.task.idle(self.blank_images())
        try:
            loss = self.task.loss(batch)
        except ValueError as error:
            if count > 1 or isinstance(error, FullfieldError):  # which says itself what is wrong
                raise
            raise TrainingError(
                f"a batch of one image of {batch.images[0].shape[-1]} pixels can't be normalised ({error}). Use a"
                " --batch-size of 2 or more, or a larger --image-size"
            ) from error
        if not torch.isfinite(loss):
            files = [self._paths[index] for index in batch.indices.tolist()]
            raise TrainingError(
                f"the loss is {float(loss.detach())} in epoch {self.current_epoch + 1}, step {batch_idx + 1} of it"
                f" (global step {self.global_step + 1}; images {', '.join(files[:3])}, ...). The last good weights are"
                " kept. Try a lower --lr, --clip-grad 1, --precision 32, or look at these images"
            )
        self.batch_loss = float(loss.detach())
        return loss * (count * self.processes.size / images) if self.processes.size > 1 else loss

    def blank_images(self) -> Tensor:
        """Return images (2, C, S, S) of zeros, for a process that has none when others do."""
        side, dtype = self._side(), next(self.task.parameters()).dtype
        return torch.zeros(2, getattr(self.task.model, "in_chans", 3), side, side, dtype=dtype, device=self.device)

    def whole_model(self) -> nn.Module | None:
        """Return the model with all its weights, None where another process has them; all processes must call it."""
        return self.task.model

    def _side(self) -> int:
        """Return the side of this epoch's images, pixels."""
        s = self.settings
        final = s.image_size or 224
        return side_at(self.current_epoch, s.epochs or 1, s.image_size_start or final, final)

    def on_validation_epoch_start(self) -> None:
        """Start the figures over."""
        self._metrics.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Count one validation batch."""
        if len(batch.images):
            self.task.validate(batch, self._metrics)

    def validation_result(self) -> Result:
        """Return the figures of the validation pass that has just ended."""
        return self._metrics.compute()

    def on_validation_epoch_end(self) -> None:
        """Give the score to early stopping."""
        self.log(f"val_{self.task.score_name}", self.validation_result().score, logger=False)

    def configure_optimizers(self) -> Any:
        """AdamW on timm's parameter groups, warm-up and cosine by the step."""
        s = self.settings
        groups = parameter_groups(self.task.model, s.weight_decay, s.layer_decay, s.lr or 1e-3)
        optimizer = torch.optim.AdamW(groups, lr=s.lr or 1e-3, weight_decay=s.weight_decay)
        warmup = round(s.warmup_epochs * self.total_steps / (s.epochs or 1))

        def factor(step: int) -> float:
            return warmup_cosine(step, total=self.total_steps, warmup=min(warmup, self.total_steps // 2))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
