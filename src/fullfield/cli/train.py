"""`fullfield train DATA`: all options are the fields of `TrainSettings`."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from fullfield.cli.parse import parse
from fullfield.errors import ConfigError
from fullfield.train.settings import TrainSettings

__all__ = ["run"]


@dataclass(frozen=True)
class TrainArguments(TrainSettings):
    """Train a classifier on a folder of images, evaluate it, and write a report.

    What is not given is fitted to the data and the machine, and said on the screen. `--config FILE` reads settings
    from YAML (such as a run's config.yaml) before the other options; `--resume RUN` continues a run after its last
    whole epoch and takes no other option.
    """

    data: tyro.conf.Positional[str]
    """Image folder (root/class/*.jpg, with or without train/val/test), CSV list (path,label), or sample:blood_cells."""


def run(argv: list[str]) -> int:
    """Train, or continue a run."""
    import fullfield

    resumed, argv = _take(argv, "--resume")
    if resumed is not None:
        if argv:
            raise ConfigError(f"--resume takes the run's own settings; leave out {' '.join(argv)}")
        fullfield.train(resume=resumed)
        return 0
    config, argv = _take(argv, "--config")
    settings: TrainArguments
    if config is None:
        settings = parse(TrainArguments, "train", argv)
    else:
        data = {"data": argv.pop(0)} if argv and not argv[0].startswith("-") else {}
        settings = parse(TrainArguments, "train", argv, default=TrainArguments.from_yaml(config, **data))
    fullfield.train(settings=settings)
    return 0


def _take(argv: list[str], flag: str) -> tuple[str | None, list[str]]:
    """Take `flag VALUE` or `flag=VALUE` out of the arguments."""
    for index, word in enumerate(argv):
        if word == flag:
            if index + 1 == len(argv):
                raise ConfigError(f"{flag} needs a value")
            return argv[index + 1], argv[:index] + argv[index + 2 :]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2], argv[:index] + argv[index + 1 :]
    return None, argv
