"""What the report of a run says, gathered from the run folder, the settings and the evaluation."""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform

import torch

from fullfield.data import ImageData, read_sample
from fullfield.models.flops import count_flops
from fullfield.tasks.evaluate import Evaluation, ImageResult
from fullfield.tasks.run_folder import RunFolder
from fullfield.tasks.source import open_model
from fullfield.train.callbacks import read_history
from fullfield.train.report import ReportImage, RunReport
from fullfield.train.settings import TrainSettings
from fullfield.version import __version__

__all__ = ["environment", "run_report"]

SHOWN = 12  # pictures in each of the two galleries


def environment(device: torch.device) -> dict[str, str]:
    """Return what a figure depends on besides the settings: versions, device, threads, date."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "fullfield": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "device": f"{device.type} ({name})",
        "threads": str(torch.get_num_threads()),
        "cores": str(os.cpu_count()),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def run_report(
    run: RunFolder,
    settings: TrainSettings,
    data: ImageData,
    evaluation: Evaluation,
    unreadable: list[tuple[str, str]],
    fitted: list[str],
    device: torch.device,
) -> RunReport:
    """Gather everything that the report of a finished run shows.

    Args:
        run: The finished run.
        settings: As used.
        data: What was trained on.
        evaluation: Of the best weights on the held-out part.
        unreadable: Path and reason of images that were left out.
        fitted: Why fitted settings have their values.
        device: Where it ran.
    """
    opened = open_model(run.path, device="cpu")
    side = opened.preprocess.image_size
    flops = count_flops(opened.model, (opened.preprocess.channels, side, side))
    counts = {"params": sum(p.numel() for p in opened.model.parameters()), "macs": flops // 2}
    ranked = sorted(evaluation.images, key=lambda image: -image.confidence)
    notes = [*data.notes, *(f"Fitted {line}." for line in fitted)]
    if evaluation.split == "val":
        notes.append(
            "The data has no test part, so the figures are on the validation part, by which the best epoch was chosen:"
            " expect a little less on new images."
        )

    archived = {s.path: s for s in data.splits[evaluation.split] if s.place is not None}

    def shown(image: ImageResult) -> ReportImage:
        classes = evaluation.classes
        picture = read_sample(archived[image.path]) if image.path in archived else None
        return ReportImage(image.path, classes[image.true], classes[image.predicted], image.confidence, picture)

    return RunReport(
        title=f"{evaluation.model} on {data.source}",
        command=settings.command(),
        config=dataclasses.asdict(settings),
        environment=environment(device),
        history=read_history(run),
        classes=evaluation.classes,
        split=evaluation.split,
        confusion=evaluation.result.confusion,
        metrics={**evaluation.result.scalars(), **counts},
        best=[shown(image) for image in ranked if image.right][:SHOWN],
        worst=[shown(image) for image in ranked if not image.right][:SHOWN],
        # validation images may be in both
        unreadable=list((dict(unreadable) | {bad.path: bad.reason for bad in evaluation.unreadable}).items()),
        notes=notes,
    )
