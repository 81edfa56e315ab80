"""Where the accuracies of a comparison come from: figures given by the user with their source, or what a run measured.

None is ever made up: a model with neither has no accuracy. A run's figure counts if the run was evaluated on the data
that the comparison is about, because accuracies on different images can't be compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fullfield.data.sample import SAMPLE_PREFIX
from fullfield.errors import ConfigError, FullfieldError, RunError, nearest
from fullfield.tasks.run_folder import RunFolder

__all__ = ["Accuracy", "accuracy_of_run", "check_given", "run_accuracy"]

HELD_OUT = ("val", "test")


@dataclass(frozen=True)
class Accuracy:
    """The top-1 accuracy of one model and where it was found."""

    top1: float
    """0 to 1."""
    source: str
    """In words, for the reader."""


def check_given(given: Mapping[str, float], source: str, known: Sequence[str]) -> dict[str, Accuracy]:
    """Return the accuracies that the user gave.

    Args:
        given: Model as the user named it -> top-1 accuracy in percent.
        source: Where they come from, in words.
        known: The models of the comparison, as the user named them.

    Raises:
        ConfigError: A model is not compared, a figure is no percentage, or the source is not told.
    """
    if given and not source.strip():
        raise ConfigError(
            "accuracies without a source can't be checked by a reader; say where they come from, as in"
            ' --accuracy-source "Table 4 of the paper"'
        )
    for name, percent in given.items():
        if name not in known:
            raise ConfigError(f"an accuracy is given for {name!r}, which is not compared{nearest(name, known)}")
        if not 1.0 < percent <= 100.0:
            raise ConfigError(f"the accuracy of {name} must be in percent, above 1 and at most 100, got {percent}")
    return {name: Accuracy(percent / 100, source.strip()) for name, percent in given.items()}


def run_accuracy(source: str | Path, data: str | Path | None) -> Accuracy | None:
    """Return what a run measured on its held-out images; None for what is no run.

    Args:
        source: A run folder, or anything else.
        data: What the comparison is about; None takes the run's own.

    Raises:
        ConfigError: The run was trained on other data.
        RunError: The run has no evaluation on held-out images, or its files are damaged.
    """
    path = Path(source)
    if not (path / "config.yaml").is_file():
        return None
    run = RunFolder.open(path)
    own = str(run.read_config().get("data", ""))
    if data is not None and not _same_data(own, str(data)):
        raise ConfigError(f"the run was evaluated on {own}, not on {data}")
    file = run.evaluation / "evaluation.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        top1, split = float(found["top1"]), str(found["split"])
        images = int(found["images"])
    except FileNotFoundError as error:
        raise RunError(f"the run has no {file.name}; evaluate it with `fullfield eval {path}`") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file} can't be read ({error}); evaluate the run again") from error
    if split not in HELD_OUT:
        raise RunError(
            f"{file} is about the split {split!r}, which the run was trained on; evaluate it on held-out images with"
            f" `fullfield eval {path} --out {run.evaluation}`"
        )
    if not 0.0 <= top1 <= 1.0:
        raise RunError(f"{file} has a top-1 accuracy of {top1}, not between 0 and 1; evaluate the run again")
    return Accuracy(top1, f"this run on {images:,} images of the {split} split of {own}")


def accuracy_of_run(source: str | Path, data: str | Path | None) -> tuple[Accuracy | None, str]:
    """Return a run's accuracy, and why there is none.

    Args:
        source: As in `run_accuracy`, like `data`.
        data: What the comparison is about.
    """
    try:
        found = run_accuracy(source, data)
    except FullfieldError as error:
        return None, str(error)
    return found, "" if found is not None else "no figure was given, and it is not a run with an evaluation"


def _same_data(one: str, other: str) -> bool:
    if one.startswith(SAMPLE_PREFIX) or other.startswith(SAMPLE_PREFIX):
        return one == other
    return Path(one).resolve() == Path(other).resolve()
