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
from torch import nn

from fullfield.data import ImageData, Preprocess, read_image_data
from fullfield.errors import ConfigError, FullfieldError, TrainingError, nearest
from fullfield.files import atomic_write
from fullfield.progress import console
from fullfield.tasks.evaluate import Evaluation, evaluate_samples
from fullfield.tasks.run_folder import RunFolder
from fullfield.tasks.source import open_model, pick_device
from fullfield.train.checkpoint import newest_state
from fullfield.train.fit import fit, say_how_to_go_on, share_of_batch
from fullfield.train.fitting import fit_settings
from fullfield.train.processes import ALONE, Processes, is_restart, join, launch
from fullfield.train.report import write_report
from fullfield.train.resume import check_unchanged, with_changes
from fullfield.train.settings import TrainSettings
from fullfield.train.sharding import check_strategy
from fullfield.train.start import check_start, fit_to_weights, start_of
from fullfield.train.summary import run_report

__all__ = ["TrainResult", "train"]


@dataclass(frozen=True)
class TrainResult:
    """What a run came to."""

    run: Path
    """The run folder."""
    settings: TrainSettings
    """As used."""
    evaluation: Evaluation
    """Of the best weights, on the test part if there is one, else on the validation part."""
    report: Path
    """The page to open."""


@dataclass(frozen=True)
class _Ready:
    """A run that can be trained: its folder holds all that is needed."""

    run: RunFolder
    settings: TrainSettings
    data: ImageData
    fitted: list[str]
    start: tuple[nn.Module, Preprocess] | None
    """What a new run starts from; a resumed one has it in its state."""


def train(
    data: str | Path | None = None,
    *,
    settings: TrainSettings | None = None,
    resume: str | Path | None = None,
    allow_change: tuple[str, ...] = (),
    **options: Any,
) -> TrainResult:
    """Train a classifier and evaluate it.

    Args:
        data: Image folder, CSV list or "sample:NAME". With `resume`, where the same data are now.
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
    data = read_image_data(settings.data, val_share=settings.val_share, seed=settings.seed)
    if resumed is None:
        if settings.weights:
            settings = fit_to_weights(settings, settings.weights)
        settings, fitted = fit_settings(settings, data, device)
        share_of_batch(settings, processes)
        fewest = min(len(data.splits[split]) for split in ("train", "val"))
        if fewest < processes:
            raise ConfigError(
                f"{data.source}: {processes} processes can't share {fewest} images; use --devices {fewest}"
            )
        start = start_of(settings, data)  # before there is a folder: what can't be built leaves none behind
        check_start(settings, *start, data.classes, device, processes)
        run = RunFolder.create(
            settings.out or RunFolder.next_free("runs", settings.model or "model"), overwrite=settings.overwrite
        )
    else:
        settings, fitted = fit_settings(settings, data, device)
        run, start = resumed, None
        state, notes = newest_state(run)
        notes += check_unchanged(state.position, settings, data, allowed)
        where = f"[bold]{escape(str(run.path))}[/]"
        console.print(f"Continuing {where} after {state.position.words} of {settings.epochs}", soft_wrap=True)
        for note in notes:
            console.print(f"  {escape(note)}", style="yellow", soft_wrap=True)
    _say_start(data, fitted, device)
    with atomic_write(run.config) as partial:
        # --config with this file must not overwrite the run in its turn
        text = replace(settings, overwrite=False).to_yaml(f"Repeat with: {settings.command()}")
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    return _Ready(run, settings, data, fitted, start)


def _finish(ready: _Ready, device: torch.device) -> TrainResult:
    """Evaluate the best weights and write the report."""
    run, settings, data = ready.run, ready.settings, ready.data
    split = "test" if "test" in data.splits else "val"
    opened = open_model(run.path, device=str(device))
    evaluation = evaluate_samples(opened, data.splits[split], split, batch_size=settings.batch_size or 32)
    evaluation.save(run.evaluation)
    bad = _unreadable(run)
    report = write_report(run_report(run, settings, data, evaluation, bad, ready.fitted, device), run.report)
    _say_end(run, evaluation, bad)
    return TrainResult(run.path, settings, evaluation, report)


def _unreadable(run: RunFolder) -> list[tuple[str, str]]:
    """Return path and reason of each image that could not be read in the run's training."""
    if not run.unreadable.exists():
        return []
    with run.unreadable.open(newline="", encoding="utf-8") as file:
        return [(row["path"], row["reason"]) for row in csv.DictReader(file)]


def _say_start(data: ImageData, fitted: list[str], device: torch.device) -> None:
    counts = ", ".join(f"{len(samples):,} {split}" for split, samples in data.splits.items())
    console.print(f"[bold]{escape(data.source)}[/]: {len(data.classes)} classes, {counts} images", soft_wrap=True)
    for note in data.notes:
        console.print(f"  {escape(note)}", style="dim", soft_wrap=True)
    if fitted:
        console.print(f"Fitted to them and to this machine ({device}, {torch.get_num_threads()} threads):")
        for line in fitted:
            console.print(f"  {escape(line)}", style="dim", soft_wrap=True)


def _say_end(run: RunFolder, evaluation: Evaluation, bad: list[tuple[str, str]]) -> None:
    result = evaluation.result
    console.print(
        f"\n[bold]Top-1 {result.top1:.1%}[/] on {result.images:,} {evaluation.split} images"
        f" (always guessing the most frequent class: {result.majority:.1%})"
    )
    if bad:
        console.print(
            f"{len(bad)} images could not be read and were left out; they are listed in {escape(str(run.unreadable))}",
            soft_wrap=True,
        )
    console.print(f"Run      {escape(str(run.path))}", soft_wrap=True)
    console.print(f"Report   {escape(str(run.report))}", soft_wrap=True)
    console.print(f"Use it   fullfield predict {escape(shlex.quote(str(run.path)))} IMAGE...", soft_wrap=True)
