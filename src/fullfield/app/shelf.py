"""The models of a page: what each answers with, and the nets that can be looked into.

Every model is opened for answers when the page is built, so that a wrong path ends the command and not a visitor's
click. The PyTorch net that maps and fields need is opened when it is first asked for, and kept.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fullfield.deploy.engine import is_exported
from fullfield.deploy.predictor import Predictor
from fullfield.errors import ConfigError

if TYPE_CHECKING:
    from fullfield.tasks.open import OpenedDense
    from fullfield.tasks.source import OpenedModel

__all__ = ["Shelf", "Shelved"]


@dataclass(frozen=True)
class Shelved:
    """One model of the page."""

    label: str
    """What visitors choose it by: the net and the last part of the path, never the whole path."""
    source: str
    predictor: Predictor

    @property
    def is_exported(self) -> bool:
        """Whether it is an exported file, which gives answers and cannot be looked into."""
        return is_exported(self.source)

    @property
    def report(self) -> Path | None:
        """The page that training wrote; None where there is none."""
        path = Path(self.source)
        run = path.parent.parent if path.suffix == ".safetensors" else path
        page = run / "report.html"
        return page if page.is_file() else None


class Shelf:
    """The models of a page, by label.

    Args:
        sources: Run folders, weights files, exported files and registered names, in the order of the page.
        device: Where PyTorch computes: "auto", "cpu", "cuda", ...
        threads: Of the CPU, for exported files; None leaves it to the library that runs them.
        pretrained: For registered names: fetch timm's weights.

    Raises:
        ConfigError: No model is named, or one twice.
        CheckpointError: A path holds no usable model.
        ModelNotFoundError: Neither a path nor a registered name.
        MissingExtraError: What runs a file is not installed.
    """

    def __init__(
        self,
        sources: Sequence[str | Path],
        *,
        device: str = "auto",
        threads: int | None = None,
        pretrained: bool = False,
    ) -> None:
        named = [str(source) for source in sources]
        if not named:
            raise ConfigError("name at least one model: a run folder, an exported file or a registered name")
        twice = sorted({source for source in named if named.count(source) > 1})
        if twice:
            raise ConfigError(f"{', '.join(twice)} is named twice; name each model once")
        self._device, self._pretrained = device, pretrained
        self._lock = threading.Lock()
        self._opened: dict[str, OpenedModel | OpenedDense] = {}
        self._models: dict[str, Shelved] = {}
        for source in named:
            fetched = pretrained and not is_exported(source)
            predictor = Predictor(source, device=device, threads=threads, pretrained=fetched)
            label = self._free(_label(predictor.name, source))
            self._models[label] = Shelved(label, source, predictor)

    @property
    def labels(self) -> list[str]:
        """The models in their order."""
        return list(self._models)

    @property
    def with_net(self) -> list[str]:
        """Those that can be looked into."""
        return [label for label, model in self._models.items() if not model.is_exported]

    def __getitem__(self, label: object) -> Shelved:
        """Return a model.

        Raises:
            ConfigError: No model has that label; the page was built with others since it was loaded.
        """
        if not isinstance(label, str) or label not in self._models:
            raise ConfigError("this page no longer has that model; load the page again")
        return self._models[label]

    def net(self, label: object, what: str) -> OpenedModel | OpenedDense:
        """Return the PyTorch model of a label.

        Args:
            label: One of `labels`.
            what: What it is needed for, for the message, such as "class-activation maps".

        Raises:
            ConfigError: It is an exported file.
            MissingExtraError: PyTorch is not installed.
        """
        model = self[label]
        if model.is_exported:
            raise ConfigError(
                f"{model.label} is an exported file, which gives answers alone. For {what} start the page with the run"
                " that it was exported from"
            )
        from fullfield.tasks.open import open_any  # a page of exported files does without PyTorch

        with self._lock:
            if model.label not in self._opened:
                self._opened[model.label] = open_any(model.source, pretrained=self._pretrained, device=self._device)
            return self._opened[model.label]

    def _free(self, label: str) -> str:
        """Return a label that no model has yet."""
        number, free = 1, label
        while free in self._models:
            number += 1
            free = f"{label} {number}"
        return free


def _label(name: str, source: str) -> str:
    last = Path(source).name
    return name if last in ("", name) else f"{name} ({last})"
