"""What a kind of task tells whoever runs its training: how data are read, the model made, kept and judged.

One object of each kind has no state; what a run is made of is in its settings, its data and its folder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import nn
from torch.utils.data import Dataset

from fullfield.errors import ConfigError
from fullfield.tasks.run_folder import RunFolder
from fullfield.tasks.task import Task
from fullfield.train.freeze import Frozen, freeze
from fullfield.train.settings import TrainSettings

__all__ = ["Data", "Datasets", "Finish", "Kind", "Start", "count_frozen"]


class Data(Protocol):
    """A data set of any kind, as its reader returns it."""

    @property
    def source(self) -> str:
        """What the user named."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names; a label is a position in here."""

    @property
    def splits(self) -> Mapping[str, Sequence[Any]]:
        """Samples by split; each has a `path`."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences to tell the user."""

    def blocks(self, split: str) -> Sequence[range] | None:
        """Return the ranges of positions that are cheap to read together; None for any order."""


@dataclass(frozen=True)
class Start:
    """What a run starts from."""

    model: nn.Module
    preprocess: Any
    """`Preprocess` or `DensePreprocess`."""
    notes: tuple[str, ...] = ()
    """Sentences to tell the user, such as which weights were taken."""


@dataclass(frozen=True)
class Datasets:
    """What the loaders of a run are made of."""

    train: Dataset[Any]
    val: Dataset[Any]
    collate: Callable[[Sequence[Any]], Any]
    val_batch: int | None = None
    """Validation images at a time; None for as many as in training."""


@dataclass(frozen=True)
class Finish:
    """What the best weights of a run came to on the held-out part."""

    evaluation: Any
    """`Evaluation` of the kind's task."""
    report: Path
    """The page to open."""
    headline: str
    """One line for the screen."""


class Kind(ABC):
    """A kind of task."""

    name: ClassVar[str]
    """Value of the setting `task`."""
    score: ClassVar[str]
    """`Task.score_name`."""
    label: ClassVar[str]
    """The score as it is printed, such as top-1."""
    columns: ClassVar[tuple[str, ...]]
    """The figures of metrics.csv."""
    foreign: ClassVar[tuple[str, ...]]
    """Settings that mean nothing here; one that is set all the same is an error, not ignored."""

    def check_settings(self, settings: TrainSettings) -> None:
        """Refuse settings of other tasks.

        Raises:
            ConfigError: One is set.
        """
        defaults = TrainSettings("")
        for name in self.foreign:
            if getattr(settings, name) != getattr(defaults, name):
                raise ConfigError(
                    f"--{name.replace('_', '-')} means nothing for --task {self.name}; leave it out, or choose the task"
                    " it is for with --task"
                )

    @abstractmethod
    def read(self, settings: TrainSettings) -> Data:
        """Read the data of a run, with its validation part.

        Raises:
            DataError: They can't be used.
        """

    @abstractmethod
    def fit(self, settings: TrainSettings, data: Any, device: torch.device) -> tuple[TrainSettings, list[str]]:
        """Fill in what the user left open; return the settings and one sentence for each fitted value."""

    @abstractmethod
    def with_weights(self, settings: TrainSettings) -> TrainSettings:
        """Return the settings of a new run with the model, and what goes with it, of the weights to start from.

        Raises:
            ConfigError: The settings ask for another model.
            CheckpointError: The weights can't be used.
        """

    @abstractmethod
    def start(self, settings: TrainSettings, data: Any) -> Start:
        """Return what a new run starts from; the seed fixes random weights.

        Raises:
            ConfigError: The model can't be built.
            CheckpointError: The weights can't be used.
        """

    @abstractmethod
    def check(self, settings: TrainSettings, start: Start, data: Any, device: torch.device, processes: int) -> None:
        """Find out before the first step what would stop it.

        Raises:
            ConfigError: Something would.
        """

    @abstractmethod
    def resumed(self, settings: TrainSettings, name: str, arguments: dict[str, Any], metadata: dict[str, Any]) -> Start:
        """Return the model of a state, whose weights come with the state, and its preprocessing.

        Args:
            settings: Of the run.
            name: Of the model, as `identity` gave it.
            arguments: Likewise.
            metadata: As `metadata` gave it.
        """

    @abstractmethod
    def identity(self, settings: TrainSettings, model: nn.Module) -> tuple[str, dict[str, Any]]:
        """Return the registered name and arguments by which the model is built again."""

    @abstractmethod
    def metadata(self, data: Any, start: Start) -> dict[str, Any]:
        """Return what goes beside the weights: classes, preprocessing, head. Plain values."""

    @abstractmethod
    def datasets(self, settings: TrainSettings, data: Any, preprocess: Any) -> Datasets:
        """Return the training and validation images."""

    @abstractmethod
    def task(self, settings: TrainSettings, data: Any, start: Start) -> Task:
        """Return the model with its loss and figures."""

    @abstractmethod
    def row(self, result: Any) -> dict[str, float | None]:
        """Return the figures of a validation pass by the names of `columns`."""

    @abstractmethod
    def save(self, model: nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
        """Write weights for use."""

    @abstractmethod
    def finish(
        self,
        run: RunFolder,
        settings: TrainSettings,
        data: Any,
        unreadable: list[tuple[str, str]],
        fitted: list[str],
        device: torch.device,
    ) -> Finish:
        """Evaluate the best weights on the held-out part, write it into the run, and write the report."""

    def freezable(self, model: nn.Module) -> nn.Module:
        """Return the part whose parameter names `--freeze` speaks of."""
        return model

    def freeze(self, model: nn.Module, parts: Sequence[str]) -> Frozen:
        """Freeze parts of a model, in place, and return how many parameters it has on either side.

        Raises:
            ConfigError: A part is unknown, or nothing would be left to train.
        """
        return freeze(self.freezable(model), parts)

    def fingerprint(self, sample: Any) -> str:
        """Return what tells a sample apart from another, for the check that a continued run has the same data."""
        return f"{sample.path.name}\0{sample.label}"


def count_frozen(model: nn.Module) -> Frozen:
    """Return how many parameters of a model stay and how many are trained."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return Frozen(sum(n for n, needed in counts if not needed), sum(n for n, needed in counts if needed))
