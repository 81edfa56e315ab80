"""The report of a detection or segmentation run: one HTML page in the manner of `report.py`.

It is as safe as that one: pictures are data URIs, there is no script, the content security policy forbids every
request, and Jinja escapes everything that names a class, a file or a setting. Layout and wording are in
`dense_report.html.jinja`; the parts that all tasks' pages share are `report_style.css.jinja`,
`report_curves.html.jinja` and `report_end.html.jinja`. Figures are shares from 0 to 1, and one that there is not, such
as the AP of small objects where there is none, is a dash.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fullfield.data.detection.objects import DetectionData
from fullfield.data.segmentation.label_maps import SegmentationData
from fullfield.models.flops import count_flops
from fullfield.tasks.detection.draw import class_colour
from fullfield.tasks.detection.evaluate import DetectionEvaluation
from fullfield.tasks.open import OpenedDense
from fullfield.tasks.run_folder import RunFolder
from fullfield.tasks.segmentation.evaluate import SegmentationEvaluation
from fullfield.train import plots
from fullfield.train.callbacks import read_history
from fullfield.train.dense_page import DensePage, ReportFacts, class_table, loss_curve, score_curve, write_page
from fullfield.train.dense_pictures import THRESHOLD, detection_pictures, segmentation_pictures
from fullfield.train.report import _DASH, _TABLE_CLASSES, _count, _data_uri, _duration, _percent
from fullfield.train.settings import CLASSIFY_SETTINGS, TrainSettings
from fullfield.train.summary import environment

__all__ = ["detection_report", "segmentation_report"]

_MEASURED = 200  # images whose size is looked at


def detection_report(
    run: RunFolder,
    settings: TrainSettings,
    data: DetectionData,
    opened: OpenedDense,
    evaluation: DetectionEvaluation,
    unreadable: list[tuple[str, str]],
    fitted: list[str],
    device: torch.device,
) -> Path:
    """Write the report of a finished detection run.

    Args:
        run: Its folder; metrics.csv is read.
        settings: As used.
        data: What was trained on.
        opened: The best weights; some images are predicted anew.
        evaluation: Of them on the held-out part.
        unreadable: Path and reason of images that were left out.
        fitted: Why fitted settings have their values.
        device: Where it ran.

    Returns:
        The page.

    Raises:
        MissingExtraError: Jinja2 or matplotlib is not installed.
        RunError: The page cannot be written.
    """
    history = read_history(run)
    box, mask = evaluation.result.box, evaluation.result.mask
    best, kind = (box, "") if mask is None else (mask, "Mask ")
    sizes = {"AP75": "ap75", "AP small": "ap_small", "AP medium": "ap_medium", "AP large": "ap_large", "AR": "ar100"}
    cards = [(kind + label if kind else label, _percent(getattr(best, name))) for label, name in sizes.items()]
    if mask is not None:
        cards += [("Box AP", _percent(box.ap)), ("Box AP50", _percent(box.ap50))]
    samples = data.splits[evaluation.split]
    sides = (int(statistics.median(s.height for s in samples)), int(statistics.median(s.width for s in samples)))
    curves = [loss_curve(history)]
    curves.append(score_curve(history, {"AP": "val_ap", "AP50": "val_ap50"}, "AP of boxes on the validation split"))
    if mask is not None:
        named = {"mask AP": "val_mask_ap", "mask AP50": "val_mask_ap50"}
        curves.append(score_curve(history, named, "AP of masks on the validation split"))
    figures = {"AP": box.per_class} if mask is None else {"Mask AP": mask.per_class, "Box AP": box.per_class}
    page = DensePage(
        split=evaluation.split,
        images=evaluation.result.images,
        headline=(best.ap, f"{kind}AP".lower().replace("ap", "AP")),
        under=f"The mean over classes and over IoU thresholds from 0.50 to 0.95. AP50, at IoU 0.50 alone, is"
        f" {_percent(best.ap50)}.",
        baseline=None,
        cards=cards + _run_cards(opened, sides, history),
        curves=curves,
        score=("val_ap", "AP") if mask is None else ("val_mask_ap", "mask AP"),
        classes=class_table(
            evaluation.classes,
            [class_colour(label) for label in range(len(evaluation.classes))],
            "Objects",
            evaluation.objects,
            figures,
        ),
        confusion=None,
        pictures=detection_pictures(opened, data, evaluation),
        pictured=f"What was annotated, and what the model finds with a score of at least {THRESHOLD}; an object counts"
        " as found at IoU 0.5. The worst first, spread evenly up to the best.",
    )
    facts = _gathered(settings, data, evaluation, unreadable, fitted, device)
    return write_page(facts, page, history, run.report)


def segmentation_report(
    run: RunFolder,
    settings: TrainSettings,
    data: SegmentationData,
    opened: OpenedDense,
    evaluation: SegmentationEvaluation,
    unreadable: list[tuple[str, str]],
    fitted: list[str],
    device: torch.device,
) -> Path:
    """Write the report of a finished segmentation run; arguments, return and errors as in `detection_report`."""
    history = read_history(run)
    result = evaluation.result
    majority = _finite(result.majority_miou)
    scores = {"mIoU": "val_miou", "pixel accuracy": "val_pixel_accuracy"}
    # the history is about the validation split, so another split's majority does not belong beside it
    baseline = ("most frequent class, mIoU", result.majority_miou) if evaluation.split == "val" else None
    cards = [("Mean accuracy", _percent(_finite(result.macc)))]
    cards.append(("Pixel accuracy", _percent(_finite(result.pixel_accuracy))))
    shares = plots.row_shares(result.confusion)
    confusion: dict[str, Any] = {"names": evaluation.classes, "shares": shares.tolist(), "heatmap": None}
    if len(evaluation.classes) > _TABLE_CLASSES:
        picture, cell = plots.confusion_png(result.confusion)
        confusion |= {"heatmap": _data_uri(picture, "png"), "cell": cell}
    pictures = segmentation_pictures(opened, data, evaluation)
    sides = _typical_size([sample.path for sample in data.splits[evaluation.split]])
    page = DensePage(
        split=evaluation.split,
        images=evaluation.result.images,
        headline=(_finite(result.miou), "mean IoU"),
        under=f"Giving every pixel the most frequent class would reach {_percent(majority)}"
        f"{'' if majority is None else ' (the mark on the bar)'}.",
        baseline=majority,
        cards=cards + _run_cards(opened, sides, history),
        curves=[loss_curve(history), score_curve(history, scores, "On the validation split", baseline)],
        score=("val_miou", "mIoU"),
        classes=class_table(
            evaluation.classes,
            data.colours,
            "Pixels",
            result.confusion.sum(axis=1).tolist(),
            {"IoU": result.iou.tolist(), "Accuracy": result.acc.tolist()},
            mistakes=[_mistake(shares[label], label, evaluation.classes) for label in range(len(shares))],
        ),
        confusion=confusion,
        pictures=pictures,
        pictured="What was annotated, and what the model says; spread evenly over the images, the worst of them first.",
    )
    facts = _gathered(settings, data, evaluation, unreadable, fitted, device)
    return write_page(facts, page, history, run.report)


def _gathered(
    settings: TrainSettings,
    data: DetectionData | SegmentationData,
    evaluation: DetectionEvaluation | SegmentationEvaluation,
    unreadable: list[tuple[str, str]],
    fitted: list[str],
    device: torch.device,
) -> ReportFacts:
    notes = [*data.notes, *(f"Fitted {line}." for line in fitted)]
    if evaluation.split == "val":
        notes.append(
            "The data has no test part, so the figures are on the validation part, by which the best epoch was chosen:"
            " expect a little less on new images."
        )
    return ReportFacts(
        title=f"{evaluation.model} on {data.source}",
        command=settings.command(),
        config={key: value for key, value in dataclasses.asdict(settings).items() if key not in CLASSIFY_SETTINGS},
        environment=environment(device),
        # validation images may be in both
        unreadable=list((dict(unreadable) | {bad.path: bad.reason for bad in evaluation.unreadable}).items()),
        notes=notes,
    )


class _Single(nn.Module):
    """A dense model that takes one image (1, C, H, W), as `count_flops` gives it, at the size it is resized to."""

    def __init__(self, model: nn.Module, task: str) -> None:
        super().__init__()
        self.model = model
        self.task = task

    def forward(self, images: Tensor) -> Any:
        return self.model(images if self.task == "segment" else list(images))


def _run_cards(
    opened: OpenedDense, sides: tuple[int, int] | None, history: list[dict[str, float]]
) -> list[tuple[str, str]]:
    """Return label and figure of the model's size and the run's length; `sides` are a typical image's, (h, w).

    MACs are those of a blank image: the mask branch of a two-stage head, which runs once for each object that is found,
    has next to none there.
    """
    cards = [("Parameters", _count(sum(p.numel() for p in opened.model.parameters())))]
    if sides is not None:
        height, width = opened.preprocess.resized(*sides)
        flops = count_flops(_Single(opened.model, opened.task), (opened.preprocess.channels, height, width))
        cards.append((f"MACs at {width} × {height}", _count(flops // 2)))
    cards.append(("Epochs", str(len(history))))
    seconds = [row["seconds"] for row in history if math.isfinite(row.get("seconds", math.nan))]
    cards.append(("Training time", _duration(sum(seconds)) if seconds else _DASH))
    return cards


def _typical_size(paths: Sequence[Path]) -> tuple[int, int] | None:
    """Return the median height and width, pixels, of some images; only headers are read."""
    sizes = []
    for path in paths[:: max(1, len(paths) // _MEASURED)]:
        try:
            with Image.open(path) as image:
                sizes.append(image.size)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
    if not sizes:
        return None
    return int(statistics.median(h for _, h in sizes)), int(statistics.median(w for w, _ in sizes))


def _mistake(shares: np.ndarray[Any, Any], label: int, classes: Sequence[str]) -> tuple[str, float] | None:
    """Return the class that most of a class's wrong pixels were taken for, with their share of the class's pixels."""
    wrong = shares.copy()
    wrong[label] = 0
    other = int(wrong.argmax())
    return (classes[other], float(wrong[other])) if wrong[other] > 0 else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
