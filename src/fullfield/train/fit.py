"""The fit of one run: loaders, model and callbacks put into Lightning's Trainer, from the start or from a state.

It reads everything from the run folder, so that any number of processes can do it together, each by itself: the first
one writes.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.plugins.precision import DoublePrecision
from pytorch_lightning.strategies import DDPStrategy
from rich.markup import escape
from torch.utils.data import DataLoader, Dataset

from fullfield.data import EpochSampler
from fullfield.errors import ConfigError, TrainingError
from fullfield.progress import console
from fullfield.tasks.run_folder import RunFolder
from fullfield.tasks.source import pick_device
from fullfield.train.callbacks import Patience, RunKeeper, ScreenProgress, UnreadableImages, averaging
from fullfield.train.checkpoint import AtomicCheckpointIO, Position, State, newest_state
from fullfield.train.data_bound import DataBound
from fullfield.train.kinds import Data, Datasets, Kind, Start, kind_of
from fullfield.train.module import TrainModule
from fullfield.train.processes import Processes, ignore_stop_signals
from fullfield.train.resume import check_unchanged, fingerprint
from fullfield.train.settings import TrainSettings, parse_interval, parse_share
from fullfield.train.sharding import ShardedAveraging, ShardedModule, ShardedStrategy
from fullfield.train.sparsity import PruneAndGrow, sparse_averaging, sparsity_of
from fullfield.train.start import checkpoint_gradients
from fullfield.train.stopping import StateKeeper, StoppedError
from fullfield.train.sync_batch_norm import convert_batch_norm
from fullfield.train.tracking import LogMetrics, make_loggers

__all__ = ["fit", "say_how_to_go_on", "share_of_batch"]


def fit(
    run: RunFolder,
    processes: Processes,
    *,
    start: Start | None = None,
    allowed: tuple[str, ...] = (),
) -> None:
    """Train a run to its end, from its newest state if it has one.

    Args:
        run: Holds the settings.
        processes: That train together; all must call this.
        start: What `Kind.start` returned, if it was called already.
        allowed: Settings that may have changed since the state, see `check_unchanged`.

    Raises:
        CheckpointError: No state of a run that has some can be read.
        ConfigError: The batch can't be divided among the processes, or the state belongs to another run.
        TrainingError: The loss is not finite, or too many images can't be read.
        KeyboardInterrupt: Ctrl-C; the state is saved.
        SystemExit: SIGTERM; the state is saved. Its code is 143.
    """
    settings = TrainSettings.from_dict(run.read_config(), where=str(run.config))
    kind = kind_of(settings.task)
    data = kind.read(settings)
    device = pick_device(settings.device)
    share = share_of_batch(settings, processes.size)
    state = processes.share(_newest(run) if processes.first else None)
    changed: list[str] = []
    if state is None:
        start = start or kind.start(settings, data)
    else:
        before = state.position
        changed = check_unchanged(before, settings, fingerprint(data, kind), data.source, allowed)
        start = kind.resumed(settings, before.model, before.model_arguments, before.metadata)
    position = _start_position(settings, kind, data, start, state)
    model = start.model
    if processes.size > 1 and settings.sync_bn:
        model = convert_batch_norm(model, device)
    if settings.grad_checkpointing:
        checkpoint_gradients(kind.freezable(model))
    if settings.freeze:
        frozen = kind.freeze(model, settings.freeze)  # after all that replaces modules
        if processes.first:
            console.print(f"Frozen: {frozen.frozen:,} parameters; {frozen.trained:,} are trained", style="dim")
    if settings.precision == "64":
        model = model.double()  # Lightning would do it after averages were made and states loaded, in float32
    if settings.channels_last and not _is_sharded(settings, processes):
        model = model.to(memory_format=torch.channels_last)

    start = replace(start, model=model)
    train_loader, val_loader = _loaders(
        settings, data, kind.datasets(settings, data, start.preprocess), processes, share
    )
    # also the epoch: Lightning starts the readers before it tells the sampler
    train_loader.sampler.start_at(position.epoch, position.batches * share)  # type: ignore[attr-defined]
    module = _module(settings, kind, data, start, len(train_loader), processes)
    module.retuned = bool(changed)
    callbacks = _callbacks(settings, kind, data, module, run, position, processes, len(train_loader) * share)
    with _quiet_lightning():
        trainer = pl.Trainer(
            **_where(settings, kind, device, processes),
            **_precision(settings, device),
            max_epochs=settings.epochs or 1,
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=settings.clip_grad or None,
            callbacks=callbacks,
            logger=make_loggers(settings.logger, run) if processes.first else False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=run.path,
        )
        keeper = next(callback for callback in callbacks if isinstance(callback, StateKeeper))
        with _interruptible(run), keeper.listening(trainer):
            trainer.fit(module, train_loader, val_loader, ckpt_path=state and state.path, weights_only=True)
    if not run.best.exists():
        raise TrainingError(f"the run ended without weights; see {run.metrics}")


def _newest(run: RunFolder) -> State | None:
    if not run.states:
        return None
    state, notes = newest_state(run)
    for note in notes:
        console.print(f"[yellow]{escape(note)}[/]", soft_wrap=True)
    return state


def share_of_batch(settings: TrainSettings, processes: int) -> int:
    """Return the images that each of so many processes has in one batch.

    Raises:
        ConfigError: They would not be a whole number.
    """
    batch, parts = settings.batch_size or 32, processes * settings.accumulate
    if batch % parts:
        near = max(parts, round(batch / parts) * parts)
        raise ConfigError(
            f"a batch of {batch} images can't be divided into {processes} processes x {settings.accumulate}"
            f" accumulated batches; use --batch-size {near}"
        )
    return batch // parts


def _start_position(settings: TrainSettings, kind: Kind, data: Data, start: Start, state: State | None) -> Position:
    """Return where training starts, with what is written into each state."""
    before = state.position if state else None
    name, arguments = kind.identity(settings, start.model)
    return Position(
        epoch=before.epoch if before else 0,
        batches=before.batches if before else 0,
        steps=before.steps if before else 0,
        model=name,
        model_arguments=arguments,
        metadata=kind.metadata(data, start),
        settings=asdict(settings),
        data=fingerprint(data, kind),
    )


def _loaders(
    settings: TrainSettings, data: Data, datasets: Datasets, processes: Processes, share: int
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return the loaders of training and validation images for this process."""
    samples = data.splits["train"], data.splits["val"]
    place: dict[str, Any] = {"seed": settings.seed, "rank": processes.rank, "world_size": processes.size}
    order = EpochSampler(
        len(samples[0]),
        shuffle=True,
        batch=settings.batch_size or 32,
        repeats=settings.repeats,
        blocks=data.blocks("train"),
        **place,
    )
    return (
        _loader(settings, datasets.train, datasets.collate, order, share),
        _loader(
            settings,
            datasets.val,
            datasets.collate,
            EpochSampler(len(samples[1]), shuffle=False, **place),
            datasets.val_batch or share,
        ),
    )


def _loader(
    settings: TrainSettings, dataset: Dataset[Any], collate: Any, order: EpochSampler, share: int
) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_size=share,
        sampler=order,
        num_workers=settings.workers or 0,
        collate_fn=collate,
        persistent_workers=bool(settings.workers),
        worker_init_fn=ignore_stop_signals,
    )


def _module(
    settings: TrainSettings, kind: Kind, data: Data, start: Start, batches: int, processes: Processes
) -> TrainModule:
    task = kind.task(settings, data, start)
    total_steps = (settings.epochs or 1) * -(-batches // settings.accumulate)
    module = ShardedModule if _is_sharded(settings, processes) else TrainModule
    return module(task, settings, total_steps, [str(s.path) for s in data.splits["train"]], processes)


def _callbacks(
    settings: TrainSettings,
    kind: Kind,
    data: Data,
    module: TrainModule,
    run: RunFolder,
    position: Position,
    processes: Processes,
    images: int,
) -> list[pl.Callback]:
    """Return the callbacks in their order, see `callbacks.py`; `images` are one process's in an epoch."""
    count = len(data.splits["train"])
    limit = int(parse_share(settings.max_bad) * count + 1e-9)  # 29 % of 100 is 28.999... in floating point
    waits = DataBound(settings.workers or 0)
    callbacks: list[pl.Callback] = [
        UnreadableImages(run, limit, count, processes),
        RunKeeper(run, kind, position.metadata, processes, waits),
        LogMetrics(run, settings=asdict(settings)),
    ]
    if settings.sparsity:
        sparsity = sparsity_of(settings, module.task.model, module.total_steps)
        callbacks.append(PruneAndGrow(sparsity, module.total_steps, settings.seed))
    if settings.ema:
        if settings.sparsity:
            callbacks.append(sparse_averaging(settings.ema))
        else:
            average = ShardedAveraging if _is_sharded(settings, processes) else WeightAveraging
            callbacks.append(averaging(settings.ema, average))
    epoch_images = min(images * processes.size, count)
    done = position.steps * (settings.batch_size or 32) if position.batches else position.epoch * epoch_images
    callbacks.append(ScreenProgress(epoch_images, settings.epochs or 1, done, processes))
    if settings.patience:
        callbacks.append(Patience(settings.patience, kind.score))
    callbacks.append(StateKeeper(run, position, parse_interval(settings.checkpoint_every), processes))
    callbacks.append(waits)  # after all that works between steps, which is not waiting
    return callbacks


def _is_sharded(settings: TrainSettings, processes: Processes) -> bool:
    return settings.strategy == "fsdp" and processes.size > 1


def _where(settings: TrainSettings, kind: Kind, device: torch.device, processes: Processes) -> dict[str, Any]:
    """Return the arguments of the Trainer for one process, or several with DDP or FSDP."""
    gpu = device.type == "cuda"
    accelerator = "gpu" if gpu else device.type
    if processes.size == 1:
        return {"accelerator": accelerator, "devices": [device.index or 0] if gpu else 1}
    together = {
        "accelerator": accelerator,
        "devices": processes.local_size,
        "num_nodes": processes.size // processes.local_size,
    }
    if _is_sharded(settings, processes):
        # weights that were put together in inference mode can't be trained
        return together | {"strategy": ShardedStrategy(processes.size), "inference_mode": False}
    # a batch without objects leaves the parts of a detector that refine them without a gradient
    unused = kind.name == "detect"
    return together | {"strategy": DDPStrategy(gradient_as_bucket_view=True, find_unused_parameters=unused)}


def _precision(settings: TrainSettings, device: torch.device) -> dict[str, Any]:
    """Return the arguments of the Trainer for its arithmetic, and for its states, which are plugins too."""
    precision = settings.precision
    if precision == "64":  # a plugin, because Lightning refuses its name beside sharded weights
        return {"plugins": [AtomicCheckpointIO(), DoublePrecision()]}
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "32"
    name = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[precision]
    return {"plugins": [AtomicCheckpointIO()], "precision": name}


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
    """End as the signal asks that stopped the run, or that came before there was a state; say how to go on."""
    number = 0
    try:
        yield
    except StoppedError as stopped:
        number = stopped.number
    except SystemExit as stopped:  # Lightning's own exit on Ctrl-C
        if not isinstance(stopped.__context__, KeyboardInterrupt):
            raise
        number = signal.SIGINT
    if number:
        if "FULLFIELD_LAUNCHED" not in os.environ:  # else the one who launched says so
            say_how_to_go_on(run)
        if number == signal.SIGTERM:
            raise SystemExit(128 + number)
        raise KeyboardInterrupt


def say_how_to_go_on(run: RunFolder) -> None:
    """Print the command that continues a run that was stopped."""
    if run.states:
        place = escape(shlex.quote(str(run.path)))
        console.print(f"\nStopped. Continue with:  fullfield train --resume {place}", soft_wrap=True)
    else:
        console.print("\nStopped before anything was saved.")
