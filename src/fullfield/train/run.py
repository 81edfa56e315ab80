"""One training run from data to report: read, fit the settings, train, evaluate the best weights, write it all down.

The parts live elsewhere (`fitting`, `fit`, `module`, `callbacks`, `report`); this file is their order. With several
processes, the first one (or, with `devices`, the one that launches them) does all but the training itself.
"""

from __future__ import annotations

import csv
import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape

from fullfield.errors import ConfigError, FullfieldError, TrainingError, nearest
from fullfield.files import atomic_write
from fullfield.progress import console
from fullfield.tasks.run_folder import RunFolder
from fullfield.tasks.source import pick_device
from fullfield.train.checkpoint import newest_state
from fullfield.train.fit import fit, say_how_to_go_on, share_of_batch
from fullfield.train.kinds import Data, Finish, Kind, Start, kind_of
from fullfield.train.kinds.find import find_task
from fullfield.train.processes import ALONE, Processes, is_restart, join, launch
from fullfield.train.resume import check_unchanged, fingerprint, with_changes
from fullfield.train.settings import TrainSettings
from fullfield.train.sharding import check_strategy

__all__ = ["TrainResult", "train"]


@dataclass(frozen=True)
class TrainResult:
    """What a run came to."""

    run: Path
    """The run folder."""
    settings: TrainSettings
    """As used."""
    evaluation: Any
    """The task's figures of the best weights, on the test part if there is one, else on the validation part."""
    report: Path
    """The page to open."""


@dataclass(frozen=True)
class _Ready:
    """A run that can be trained: its folder holds all that is needed."""

    run: RunFolder
    settings: TrainSettings
    kind: Kind
    data: Data
    fitted: list[str]
    start: Start | None
    """What a new run starts from; a resumed one has it in its state."""


def train(
    data: str | Path | None = None,
    *,
    settings: TrainSettings | None = None,
    resume: str | Path | None = None,
    allow_change: tuple[str, ...] = (),
    **options: Any,
) -> TrainResult:
    """Train a classifier, a detector or a segmenter, and evaluate it.

    Args:
        data: Image folder, CSV list, annotated images or "sample:NAME". With `resume`, where the same data are now.
        settings: All settings at once, instead of `data` and `options`.
        resume: A run folder to continue from its newest state, with its own settings; `options` change them.
        allow_change: With `resume`, settings that may change though the run is then another one; "images" where the
            lists of images may. How many processes there are and what is saved and shown may always change.
        options: Fields of `TrainSettings`, such as `model="racnn_tiny"` or `epochs=30`.

    Returns:
        The run folder, the held-out figures and the report.

    Raises:
        ConfigError: An option does not exist (the nearest is named) or has an impossible value, or `resume` would
            change what matters.
        DataError: The data can't be used.
        RunError: The run folder exists, is not a run, or can't be written.
        CheckpointError: The run to continue has no state that can be read.
        TrainingError: The loss is not finite, too many images can't be read, or one of several processes failed. What
            was saved stays.
        KeyboardInterrupt: Ctrl-C; the state is saved, and the run can be continued with `resume`.
        SystemExit: SIGTERM, in the same way; its code is 143.
    """
    if resume is not None:
        if settings is not None:
            raise ConfigError("resume takes the run's own settings; give no others with it")
        if data is not None:
            options["data"] = str(data)
        run = RunFolder.open(resume)
        kept = TrainSettings.from_dict(run.read_config(), where=str(run.config))
        return _together(with_changes(kept, options), run, allow_change)
    if settings is not None and (data is not None or options):
        raise ConfigError("settings hold the data and all options; give nothing else with them")
    if settings is None:
        if data is None:
            raise ConfigError("train needs data: an image folder, a CSV list or sample:blood_cells")
        _check_names(options)
        settings = TrainSettings(data=str(data), **options)
    return _together(settings, None, ())


def _check_names(options: dict[str, Any]) -> None:
    known = [field.name for field in fields(TrainSettings)]
    for name in options:
        if name not in known:
            raise ConfigError(f"train has no option {name!r}{nearest(name, known)}")


def _together(settings: TrainSettings, resumed: RunFolder | None, allowed: tuple[str, ...]) -> TrainResult:
    """Prepare a run, train it in one process or several, and evaluate it."""
    device = pick_device(settings.device)
    processes = join(device)
    if resumed is None and is_restart() and settings.out and Path(settings.out, "config.yaml").is_file():
        resumed = RunFolder.open(settings.out)  # the whole command is repeated
    if not processes.first:
        return _help(processes, allowed)
    try:
        ready = _prepare(settings, resumed, allowed, device, max(processes.size, settings.devices))
    except FullfieldError:
        processes.share(None)
        raise
    processes.share(ready.run)
    if processes is ALONE and settings.devices > 1:
        try:
            launch([str(ready.run.path), *allowed], settings.devices, restarts=settings.restarts)
        except (KeyboardInterrupt, SystemExit):
            say_how_to_go_on(ready.run)
            raise
    else:
        fit(ready.run, processes, start=ready.start, allowed=allowed)
    result = _finish(ready, device)
    processes.share(result)
    return result


def _help(processes: Processes, allowed: tuple[str, ...]) -> TrainResult:
    """Train a run that the first process prepares and evaluates."""
    console.quiet = True
    run = processes.share(None)
    if run is None:
        raise TrainingError("the first process could not start the run; it has said why")
    fit(run, processes, allowed=allowed)
    result: TrainResult = processes.share(None)
    return result


def _prepare(
    settings: TrainSettings,
    resumed: RunFolder | None,
    allowed: tuple[str, ...],
    device: torch.device,
    processes: int,
) -> _Ready:
    """Read the data, fit the settings, and make the run folder or check the state to go on from."""
    check_strategy(settings, processes)
    if Path(settings.data).exists():  # the run must find its data from any folder
        settings = replace(settings, data=str(Path(settings.data).resolve()))
    if settings.task == "auto":
        settings = replace(settings, task=find_task(settings))
    kind = kind_of(settings.task)
    kind.check_settings(settings)
    data = kind.read(settings)
    notes = list(data.notes)
    if resumed is None:
        settings = kind.with_weights(settings)
        settings, fitted = kind.fit(settings, data, device)
        share_of_batch(settings, processes)
        fewest = min(len(data.splits[split]) for split in ("train", "val"))
        if fewest < processes:
            raise ConfigError(
                f"{data.source}: {processes} processes can't share {fewest} images; use --devices {fewest}"
            )
        start = kind.start(settings, data)  # before there is a folder: what can't be built leaves none behind
        notes += start.notes
        kind.check(settings, start, data, device, processes)
        run = RunFolder.create(
            settings.out or RunFolder.next_free("runs", settings.model or "model"), overwrite=settings.overwrite
        )
    else:
        settings, fitted = kind.fit(settings, data, device)
        run, start = resumed, None
        state, found = newest_state(run)
        found += check_unchanged(state.position, settings, fingerprint(data, kind), data.source, allowed)
        where = f"[bold]{escape(str(run.path))}[/]"
        console.print(f"Continuing {where} after {state.position.words} of {settings.epochs}", soft_wrap=True)
        for note in found:
            console.print(f"  {escape(note)}", style="yellow", soft_wrap=True)
    _say_start(data, notes, fitted, device)
    with atomic_write(run.config) as partial:
        # --config with this file must not overwrite the run in its turn
        text = replace(settings, overwrite=False).to_yaml(f"Repeat with: {settings.command()}")
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    return _Ready(run, settings, kind, data, fitted, start)


def _finish(ready: _Ready, device: torch.device) -> TrainResult:
    """Evaluate the best weights and write the report."""
    run, settings = ready.run, ready.settings
    bad = _unreadable(run)
    finish = ready.kind.finish(run, settings, ready.data, bad, ready.fitted, device)
    _say_end(run, finish, bad)
    return TrainResult(run.path, settings, finish.evaluation, finish.report)


def _unreadable(run: RunFolder) -> list[tuple[str, str]]:
    """Return path and reason of each image that could not be read in the run's training."""
    if not run.unreadable.exists():
        return []
    with run.unreadable.open(newline="", encoding="utf-8") as file:
        return [(row["path"], row["reason"]) for row in csv.DictReader(file)]


def _say_start(data: Data, notes: list[str], fitted: list[str], device: torch.device) -> None:
    counts = ", ".join(f"{len(samples):,} {split}" for split, samples in data.splits.items())
    console.print(f"[bold]{escape(data.source)}[/]: {len(data.classes)} classes, {counts} images", soft_wrap=True)
    for note in notes:
        console.print(f"  {escape(note)}", style="dim", soft_wrap=True)
    if fitted:
        console.print(f"Fitted to them and to this machine ({device}, {torch.get_num_threads()} threads):")
        for line in fitted:
            console.print(f"  {escape(line)}", style="dim", soft_wrap=True)


def _say_end(run: RunFolder, finish: Finish, bad: list[tuple[str, str]]) -> None:
    console.print(f"\n{finish.headline}", soft_wrap=True)
    if bad:
        console.print(
            f"{len(bad)} images could not be read and were left out; they are listed in {escape(str(run.unreadable))}",
            soft_wrap=True,
        )
    console.print(f"Run      {escape(str(run.path))}", soft_wrap=True)
    console.print(f"Report   {escape(str(run.report))}", soft_wrap=True)
    console.print(f"Use it   fullfield predict {escape(shlex.quote(str(run.path)))} IMAGE...", soft_wrap=True)
