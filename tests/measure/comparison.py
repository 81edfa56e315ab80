"""A comparison made without measuring, for the tests of what is done with one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from fullfield.measure.cam_result import Cam
from fullfield.measure.cam_scores import CamScores, Curve
from fullfield.measure.compare_accuracy import Accuracy
from fullfield.measure.compare_result import QUICK, Compared, Comparison, NotMeasured
from fullfield.measure.compare_stages import StageCost
from fullfield.measure.cost_report import CostReport, cost_report
from fullfield.measure.erf import erf_of_layers
from fullfield.measure.runners import Setting
from fullfield.measure.speed import SpeedRow
from fullfield.measure.timing import Samples, ratio

ENVIRONMENT = {"device": "a made-up processor", "cores": "2", "threads": "2", "torch": "2.11", "date": "2026-01-01"}


class TwoStages(nn.Module):
    """A net of two stages and a head, without anything that timm knows."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(2 * width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.second(self.first(x)).mean((2, 3)))
        return result


def speed_row(label: str, report: CostReport, seconds: tuple[float, ...], batch: int) -> SpeedRow:
    return SpeedRow(label, Setting(batch=batch, image_size=(32, 32)), Samples(seconds), 12.5, report.cost)


def made_up_cam(label: str) -> Cam:
    curve = Curve((0.0, 1.0), (0.9, 0.1))
    scores = CamScores(curve, curve, Curve((0.0, 1.0), (0.6, 0.2)), curve)
    heat = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
    image = np.full((32, 32, 3), 128, dtype=np.uint8)
    names = ("grad-cam", "second.1", (8, 8), "photos/cat.jpg", "classify", 1, "cat", 0.75)
    return Cam(label, "trained", *names, map=heat, image=image, scores=scores)


def full_model(label: str, width: int, **changes: Any) -> Compared:
    """Return a model with every part."""
    model = TwoStages(width)
    report = cost_report(model, image_size=32)
    fields = erf_of_layers(model, torch.randn(2, 3, 32, 32), ["first.1", "second.1"])
    macs = report.cost.macs
    found = Compared(
        label,
        "trained",
        32,
        accuracy=Accuracy(0.5 + width / 100, "Table 1 of a paper"),
        cost=report,
        stages=(
            StageCost("stage 1", "first.1", 100, macs // 4, 1.5),
            StageCost("stage 2", "second.1", 200, macs // 2, 2.5),
            StageCost("head", "", 50, macs // 4, 0.5),
        ),
        latency=speed_row(label, report, (width * 1e-3, width * 1e-3, width * 2e-3), 1),
        throughput=speed_row(label, report, (width * 2e-3,) * 3, QUICK.batch),
        erfs=tuple(fields),
        cam=made_up_cam(label),
    )
    return replace(found, **changes)


def made_up(models: tuple[Compared, ...] | None = None, **changes: Any) -> Comparison:
    """Return a comparison of two models and of one that could not be built."""
    models = models or (full_model("small", 4), full_model("large", 8))
    first = models[0].throughput
    if first is not None:
        models = tuple(
            replace(m, throughput=replace(m.throughput, ratio=ratio(m.throughput.samples, first.samples)))
            if m.throughput
            else m
            for m in models
        )
    missing = (
        NotMeasured("broken", "building", "it has no weights"),
        NotMeasured("small", "cam", "grad-cam is missing"),
        NotMeasured("large", "cam", "grad-cam is missing"),
    )
    found = Comparison(models, missing, "photos", QUICK, 83.0, ENVIRONMENT, "fullfield compare small large photos")
    return replace(found, **changes)
