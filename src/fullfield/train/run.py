"""One training run from data to report: read, fit the settings, train, evaluate the best weights, write it all down.

The parts live elsewhere (`fitting`, `module`, `callbacks`, `report`); this file is their order.
"""

from __future__ import annotations

import logging
import shlex
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.markup import escape
from torch import nn
from torch.utils.data import DataLoader

from fullfield.data import (
    Augment,
    EpochSampler,
    ImageClassification,
    ImageData,
    Preprocess,
    Sample,
    collate,
    eval_transform,
    read_image_data,
    train_transform,
)
from fullfield.errors import ConfigError, TrainingError, nearest
from fullfield.files import atomic_write
from fullfield.progress import console
from fullfield.tasks.classify import ClassificationTask
from fullfield.tasks.evaluate import Evaluation, evaluate_samples
from fullfield.tasks.run_folder import RunFolder
from fullfield.tasks.source import checkpoint_metadata, open_model, pick_device
from fullfield.train.callbacks import Patience, RunKeeper, ScreenProgress, UnreadableImages, averaging
from fullfield.train.checkpoint import AtomicCheckpointIO, checkpoint_epoch
from fullfield.train.fitting import fit_settings
from fullfield.train.module import TrainModule
from fullfield.train.report import write_report
from fullfield.train.settings import TrainSettings, parse_share
from fullfield.train.sparsity import PruneAndGrow, sparse_averaging, sparsity_of
from fullfield.train.start import fit_to_weights, start_model, start_preprocess
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


def train(
    data: str | Path | None = None,
    *,
    settings: TrainSettings | None = None,
    resume: str | Path | None = None,
    **options: Any,
) -> TrainResult:
    """Train a classifier and evaluate it.

    Args:
        data: Image folder, CSV list or "sample:NAME".
        settings: All settings at once, instead of `data` and `options`.
        resume: A run folder to continue after its last whole epoch, with its own settings.
        options: Fields of `TrainSettings`, such as `model="racnn_tiny"` or `epochs=30`.

    Returns:
        The run folder, the held-out figures and the report.

    Raises:
        ConfigError: An option does not exist (the nearest is named) or has an impossible value.
        DataError: The data can't be used.
        RunError: The run folder exists, is not a run, or can't be written.
        TrainingError: The loss is not finite, or too many images can't be read. What was saved stays.
        KeyboardInterrupt: Ctrl-C; the run can be continued with `resume`.
    """
    if resume is not None:
        if settings is not None or data is not None or options:
            raise ConfigError("resume takes the run's own settings; give no data and no other option with it")
        run = RunFolder.open(resume)
        settings = TrainSettings.from_dict(run.read_config(), where=str(run.config))
        done = checkpoint_epoch(run.last)
        where = f"[bold]{escape(str(run.path))}[/]"
        console.print(f"Continuing {where} after epoch {done} of {settings.epochs}", soft_wrap=True)
        return _run(settings, run)
    if settings is not None and (data is not None or options):
        raise ConfigError("settings hold the data and all options; give nothing else with them")
    if settings is None:
        if data is None:
            raise ConfigError("train needs data: an image folder, a CSV list or sample:blood_cells")
        _check_names(options)
        settings = TrainSettings(data=str(data), **options)
    return _run(settings, None)


def _check_names(options: dict[str, Any]) -> None:
    known = [field.name for field in fields(TrainSettings)]
    for name in options:
        if name not in known:
            raise ConfigError(f"train has no option {name!r}{nearest(name, known)}")


def _run(settings: TrainSettings, resumed: RunFolder | None) -> TrainResult:
    if Path(settings.data).exists():  # the run must find its data from any folder
        settings = replace(settings, data=str(Path(settings.data).resolve()))
    device = pick_device(settings.device)
    data = read_image_data(settings.data, val_share=settings.val_share, seed=settings.seed)
    if settings.weights and resumed is None:
        settings = fit_to_weights(settings, settings.weights)
    settings, fitted = fit_settings(settings, data, device)
    _say_start(data, fitted, device)
    torch.manual_seed(settings.seed)
    # a resumed run has weights of its own; those that it started from may be gone
    start = settings.weights and str(resumed.best if resumed else settings.weights)
    model = start_model(settings, start, data)
    preprocess = start_preprocess(settings, model, resumed.best if resumed else None)
    run = resumed or RunFolder.create(
        settings.out or RunFolder.next_free("runs", settings.model or "model"), overwrite=settings.overwrite
    )
    if resumed is None:
        with atomic_write(run.config) as partial:
            # --config with this file must not overwrite the run in its turn
            text = replace(settings, overwrite=False).to_yaml(f"Repeat with: {settings.command()}")
            partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    metadata = checkpoint_metadata(data.classes, preprocess)
    bad = _fit(settings, data, model, preprocess, run, metadata, device, resume=resumed is not None)

    split = "test" if "test" in data.splits else "val"
    opened = open_model(run.path, device=str(device))
    evaluation = evaluate_samples(opened, data.splits[split], split, batch_size=settings.batch_size or 32)
    evaluation.save(run.evaluation)
    report = write_report(run_report(run, settings, data, evaluation, bad, fitted, device), run.report)
    _say_end(run, evaluation, bad)
    return TrainResult(run.path, settings, evaluation, report)


def _loader(settings: TrainSettings, samples: tuple[Sample, ...], transform: Any, *, training: bool) -> DataLoader[Any]:
    batch = settings.batch_size or 32
    dataset = ImageClassification(
        samples, transform, seed=settings.seed, min_side=(settings.image_size or 224) if training else None
    )
    return DataLoader(
        dataset,
        batch_size=batch,
        sampler=EpochSampler(len(samples), shuffle=training, seed=settings.seed),
        num_workers=settings.workers or 0,
        collate_fn=collate,
        drop_last=training and len(samples) > batch,
        persistent_workers=bool(settings.workers),
    )


def _fit(
    settings: TrainSettings,
    data: ImageData,
    model: nn.Module,
    preprocess: Preprocess,
    run: RunFolder,
    metadata: dict[str, Any],
    device: torch.device,
    *,
    resume: bool,
) -> list[tuple[str, str]]:
    """Train; return the images that could not be read."""
    samples = data.splits["train"]
    augment = Augment(
        scale_min=settings.scale_min,
        hflip=settings.hflip,
        vflip=settings.vflip,
        rand_augment=settings.rand_augment,
        erasing=settings.erasing,
    )
    train_loader = _loader(settings, samples, train_transform(preprocess, augment), training=True)
    val_loader = _loader(settings, data.splits["val"], eval_transform(preprocess), training=False)
    task = ClassificationTask(
        model,
        len(data.classes),
        label_smoothing=settings.label_smoothing,
        mixup=settings.mixup,
        cutmix=settings.cutmix,
    )
    epochs = settings.epochs or 1
    total_steps = epochs * len(train_loader)
    module = TrainModule(task, settings, total_steps, [str(s.path) for s in samples])
    limit = int(parse_share(settings.max_bad) * len(samples) + 1e-9)  # 29 % of 100 is 28.999... in floating point
    unreadable = UnreadableImages(run, limit, len(samples))
    images = len(train_loader) * (settings.batch_size or 32) if train_loader.drop_last else len(samples)
    callbacks: list[pl.Callback] = [unreadable, RunKeeper(run, metadata)]
    if settings.sparsity:
        callbacks.append(PruneAndGrow(sparsity_of(settings, model, total_steps), total_steps, settings.seed))
    if settings.ema:
        callbacks.append((sparse_averaging if settings.sparsity else averaging)(settings.ema))
    callbacks.append(ScreenProgress(images, epochs))
    if settings.patience:
        callbacks.append(Patience(settings.patience))
    with _quiet_lightning():
        trainer = pl.Trainer(
            accelerator="gpu" if device.type == "cuda" else device.type,
            devices=[device.index or 0] if device.type == "cuda" else 1,
            precision=_precision(settings, device),  # type: ignore[arg-type]
            max_epochs=epochs,
            gradient_clip_val=settings.clip_grad or None,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=run.path,
        )
        with _interruptible(run):
            trainer.fit(module, train_loader, val_loader, ckpt_path=run.last if resume else None, weights_only=True)
    if not run.best.exists():
        raise TrainingError(f"the run ended without weights; see {run.metrics}")
    return unreadable.all


def _precision(settings: TrainSettings, device: torch.device) -> str:
    kind = settings.precision
    if kind == "auto":
        kind = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "32"
    return {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[kind]


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's tips off the screen; errors come through."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|torchmetrics)")
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _interruptible(run: RunFolder) -> Iterator[None]:
    """Turn Lightning's exit on Ctrl-C into KeyboardInterrupt, and say how to go on."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stopped:
        if not isinstance(stopped.__context__, KeyboardInterrupt):
            raise
        if run.last.exists():
            place = escape(shlex.quote(str(run.path)))
            console.print(f"\nStopped. Continue with:  fullfield train --resume {place}", soft_wrap=True)
        else:
            console.print("\nStopped before the first epoch was saved.")
        raise KeyboardInterrupt from stopped
    finally:
        if main:  # no other thread gets or may set handlers
            signal.signal(signal.SIGINT, handler)


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
