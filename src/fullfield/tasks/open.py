"""Opening a trained model of any task: a run folder or a weights file, or a registered classifier.

`open_model` is for what deals with classifiers alone. `open_any` asks the file which task it is for, and whoever calls
it goes by the `task` of what it returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fullfield.data import Preprocess
from fullfield.data.dense import DensePreprocess
from fullfield.tasks.dense_file import load_dense, task_of
from fullfield.tasks.source import OpenedModel, is_registered_name, open_model, pick_device

__all__ = ["OpenedDense", "backbone_of", "open_any"]


@dataclass(frozen=True)
class OpenedDense:
    """A detector or segmenter ready to be used, in eval mode."""

    name: str
    """Head and net."""
    model: Any
    """A `Detector` or a `Segmenter`."""
    classes: tuple[str, ...]
    preprocess: DensePreprocess
    trained: bool
    source: str
    task: str
    """detect or segment."""
    metadata: Mapping[str, Any]
    """All that was saved beside the weights."""

    @property
    def colours(self) -> tuple[tuple[int, int, int], ...]:
        """Red, green and blue of each class, 0 to 255; of a segmenter."""
        return tuple((int(red), int(green), int(blue)) for red, green, blue in self.metadata["colours"])


def open_any(source: str | Path, *, pretrained: bool = False, device: str = "auto") -> OpenedModel | OpenedDense:
    """Open a run folder, a weights file of any task, or a registered classifier.

    Args:
        source: As in `open_model`.
        pretrained: Likewise.
        device: Likewise.

    Raises:
        CheckpointError: The path holds no usable weights.
        ModelNotFoundError: Neither a path nor a registered name.
        ConfigError: The device is not to be had here.
    """
    if is_registered_name(source) or task_of(source) == "classify":
        return open_model(source, pretrained=pretrained, device=device)
    where = pick_device(device)
    checkpoint = load_dense(source)
    found = checkpoint.metadata
    return OpenedDense(
        checkpoint.name,
        checkpoint.model.to(where),
        tuple(found["classes"]),
        DensePreprocess.from_dict(found["preprocess"]),
        trained=True,
        source=str(source),
        task=checkpoint.task,
        metadata=found,
    )


def backbone_of(opened: OpenedDense) -> OpenedModel:
    """Return the net of a detector or segmenter, without a classifier, as what looks into nets takes it."""
    p = opened.preprocess
    side = p.window or p.short_side or 224
    net: nn.Module = opened.model.backbone.model
    preprocess = Preprocess(side, 1.0, p.mean, p.std, channels=p.channels)
    return OpenedModel(opened.name, net, (), preprocess, trained=opened.trained, source=opened.source)
