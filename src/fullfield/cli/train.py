"""`fullfield train DATA`: all options are the fields of `TrainSettings`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import tyro

from fullfield.cli.parse import parse
from fullfield.errors import ConfigError
from fullfield.tasks.run_folder import RunFolder
from fullfield.train.settings import TrainSettings

__all__ = ["run"]


@dataclass(frozen=True)
class TrainArguments(TrainSettings):
    """Train a classifier, detector or segmenter on annotated images, evaluate it, and write a report.

    What is not given is fitted to the data and the machine, and said on the screen. `--config FILE` reads settings
    from YAML (such as a run's config.yaml) before the other options; `--resume RUN` continues a run where it
    stopped, within an epoch too, and needs nothing else. Options given with it are changed (DATA where it was moved);
    those that change the result (`--lr`, say) must be named again: `--allow-change lr`, or `images` for other images.
    """

    data: tyro.conf.Positional[str]
    """Image folder (root/class/*.jpg, with or without train/val/test), CSV list (path,label), tar shards, Parquet
    files, a saved Hugging Face data set; COCO, Pascal VOC or YOLO annotations; images/ with masks/, ADE20K or
    Cityscapes; or sample:NAME (blood_cells, blood_cells_boxes, nuclei)."""


def run(argv: list[str]) -> int:
    """Train, or continue a run."""
    import fullfield

    resumed, argv = _take(argv, "--resume")
    if resumed is not None:
        allowed, argv = _take_list(argv, "--allow-change")
        fullfield.train(resume=resumed, allow_change=allowed, **_given(resumed, argv))
        return 0
    config, argv = _take(argv, "--config")
    settings: TrainArguments
    if config is None:
        settings = parse(TrainArguments, "train", argv)
    else:
        data = {"data": argv.pop(0)} if argv and not argv[0].startswith("-") else {}
        recipe = TrainArguments.from_yaml(config, fallback={"data": ""}, **data)
        settings = parse(TrainArguments, "train", argv, default=recipe)
        if not settings.data:
            raise ConfigError(f"{config}: the setting 'data' is missing: which images to train on")
    fullfield.train(settings=settings)
    return 0


def _given(run: str, argv: list[str]) -> dict[str, Any]:
    """Return the settings that differ from the run's own when options are read on top of them."""
    if not argv:
        return {}
    kept = TrainArguments.from_dict(RunFolder.open(run).read_config(), where=run)
    data = [] if not argv[0].startswith("-") else [kept.data]
    asked = parse(TrainArguments, "train", [*data, *argv], default=kept)
    values = {field.name: getattr(asked, field.name) for field in fields(TrainSettings)}
    return {name: value for name, value in values.items() if value != getattr(kept, name)}


def _take_list(argv: list[str], flag: str) -> tuple[tuple[str, ...], list[str]]:
    """Take `flag A B ...`, up to the next option, out of the arguments."""
    if flag not in argv:
        return (), argv
    start = argv.index(flag)
    end = next((i for i in range(start + 1, len(argv)) if argv[i].startswith("-")), len(argv))
    if end == start + 1:
        raise ConfigError(f"{flag} needs the names of settings")
    return tuple(name.replace("-", "_") for name in argv[start + 1 : end]), argv[:start] + argv[end:]


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
