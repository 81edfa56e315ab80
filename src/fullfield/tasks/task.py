"""What every task is to whoever trains it: a loss of a batch, and figures of a validation pass.

A task owns its model and knows no optimiser and no epoch. Its figures are accumulated by a `Metrics`, exactly over any
batches and processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

__all__ = ["Metrics", "Result", "Task"]


class Result(Protocol):
    """Figures over one pass of a data set."""

    @property
    def images(self) -> int:
        """How many were counted."""

    @property
    def score(self) -> float:
        """The one figure by which epochs are compared, 0 to 1, the higher the better: top-1, AP or mIoU."""

    def scalars(self) -> dict[str, float]:
        """Return the single numbers by name, as they are printed and stored."""


class Metrics(nn.Module, ABC):
    """Accumulator of a `Result`."""

    @abstractmethod
    def compute(self) -> Result:
        """Return the figures over all batches since the last `reset`; over all processes if made so."""

    @abstractmethod
    def reset(self) -> None:
        """Start over."""


class Task(nn.Module, ABC):
    """A model with its loss and its figures."""

    kind: ClassVar[str]
    """classify, detect or segment."""
    score_name: ClassVar[str]
    """What `Result.score` is called, such as top1."""
    model: nn.Module

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """Return the mean loss of a training batch with at least one image."""

    @abstractmethod
    def metrics(self, *, synced: bool = False) -> Metrics:
        """Return an empty accumulator; `synced` makes its figures those of all processes, which must all ask."""

    def idle(self, blank: Tensor) -> Tensor:
        """Return a loss of 0 with zero gradients, for a process whose batch has no image when others' have.

        Args:
            blank: Images (2, C, S, S) of zeros, for tasks whose weights are only there while the net runs.
        """
        del blank
        return torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum() * 0.0

    @abstractmethod
    def validate(self, batch: Any, metrics: Any) -> None:
        """Count a validation batch with at least one image; the model is in eval mode."""
