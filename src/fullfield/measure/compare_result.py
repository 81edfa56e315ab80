"""What `compare` gives: every model's figures, what was not measured and why, as rows, files, a picture and a page."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fullfield.errors import ConfigError
from fullfield.files import write_json
from fullfield.measure.cam_result import Cam
from fullfield.measure.compare_accuracy import Accuracy
from fullfield.measure.compare_stages import StageCost
from fullfield.measure.cost_report import CostReport
from fullfield.measure.erf_result import Erf
from fullfield.measure.speed import SpeedRow
from fullfield.measure.tables import Row, rows_to_dataframe, write_rows

__all__ = ["QUICK", "USUAL", "Budget", "Compared", "Comparison", "NotMeasured"]


@dataclass(frozen=True)
class Budget:
    """How much is measured. Six models of about 5 GMACs with `USUAL` take under ten minutes on two CPU cores."""

    erf_images: int = 8
    """Images that a receptive field is averaged over."""
    timing_seconds: float = 30.0
    """Time for each batch size, all models together, warm-up not counted."""
    min_rounds: int = 5
    """Samples of every model at least, whatever that takes."""
    batch: int = 8
    """Images a call for the throughput; the latency is of one image."""
    stage_calls: int = 5
    """Calls that the time of a stage is the median of."""
    cam_steps: int = 10
    """Steps of the deletion and insertion curves."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0:
                raise ConfigError(f"{name} must be above 0, got {value}")


USUAL = Budget()
QUICK = Budget(erf_images=2, timing_seconds=5.0, min_rounds=3, batch=4, stage_calls=2, cam_steps=4)


@dataclass(frozen=True)
class NotMeasured:
    """One thing that the comparison lacks."""

    model: str
    """Label of the model; "" for all of them."""
    part: str
    """One of `compare.PARTS`, or "building"."""
    reason: str


@dataclass(frozen=True)
class Compared:
    """The figures of one model; a part that failed or was not asked for is None or empty."""

    label: str
    weights: str
    """"trained", "random" or "unknown"."""
    image_size: int
    """Side in pixels of what it was measured on."""
    accuracy: Accuracy | None = None
    cost: CostReport | None = None
    stages: tuple[StageCost, ...] = ()
    latency: SpeedRow | None = None
    """One image a call, in the faster memory layout."""
    throughput: SpeedRow | None = None
    """Several images a call, in the faster memory layout."""
    erfs: tuple[Erf, ...] = ()
    """The last layer of each stage, in order."""
    cam: Cam | None = None

    def to_row(self) -> Row:
        """Return plain values under the names of the CSV's columns; None where nothing was measured."""
        cost = None if self.cost is None else self.cost.cost
        last = self.erfs[-1] if self.erfs else None
        latency, speed = self.latency, self.throughput
        scores = None if self.cam is None else self.cam.scores
        return {
            "model": self.label,
            "part": "model",
            "weights": self.weights,
            "image_size": self.image_size,
            "top1": None if self.accuracy is None else self.accuracy.top1,
            "accuracy_source": None if self.accuracy is None else self.accuracy.source,
            "params": None if cost is None else cost.params,
            "macs": None if cost is None else cost.macs,
            "flops": None if cost is None else cost.flops,
            "p50_ms": None if latency is None else round(latency.samples.percentile_ms(50), 3),
            "p90_ms": None if latency is None else round(latency.samples.percentile_ms(90), 3),
            "batch": None if speed is None else speed.setting.batch,
            "images_per_s": None if speed is None else round(speed.images_per_s, 2),
            "peak_memory_mb": None if speed is None or speed.peak_memory_mb is None else round(speed.peak_memory_mb, 1),
            "ratio": None if speed is None or speed.ratio is None else round(speed.ratio.median, 4),
            "ratio_p10": None if speed is None or speed.ratio is None else round(speed.ratio.low, 4),
            "ratio_p90": None if speed is None or speed.ratio is None else round(speed.ratio.high, 4),
            "erf_area_50": None if last is None else round(last.area_ratio[0.5], 5),
            "erf_area_99": None if last is None else round(last.area_ratio[0.99], 5),
            "cam_deletion": None if scores is None else round(scores.deletion.auc, 4),
            "cam_insertion": None if scores is None else round(scores.insertion.auc, 4),
        }


@dataclass(frozen=True)
class Comparison:
    """What `compare` measured."""

    models: tuple[Compared, ...]
    """In the order in which they were named; those that could not be built are only in `not_measured`."""
    not_measured: tuple[NotMeasured, ...]
    data: str
    """The data set's name as it was given; "" without one."""
    budget: Budget
    seconds: float
    """What measuring took."""
    environment: dict[str, str]
    command: str = ""
    """The shell command that repeats it; "" where it was called from Python."""
    notes: tuple[str, ...] = field(default=())
    """Sentences that the reader should know."""

    def gaps(self) -> list[tuple[str, list[str], str]]:
        """Return what was not measured as part, labels of the models (none for all of them) and reason, each once."""
        found: dict[tuple[str, str], list[str]] = {}
        for item in self.not_measured:
            models = found.setdefault((item.part, item.reason), [])
            if item.model:
                models.append(item.model)
        return [(part, models, reason) for (part, reason), models in found.items()]

    def to_rows(self) -> list[Row]:
        """Return one row a model and one a stage (`part`), the environment in every one."""
        rows = []
        for model in self.models:
            rows.append(model.to_row() | self.environment)
            for stage in model.stages:
                rows.append({"model": model.label, "part": stage.name, **stage.to_row()} | self.environment)
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the pictures as plain JSON values."""
        return {
            "data": self.data,
            "command": self.command,
            "seconds": round(self.seconds, 1),
            "budget": asdict(self.budget),
            "environment": self.environment,
            "models": [
                model.to_row()
                | {"stages": [{"name": stage.name} | stage.to_row() for stage in model.stages]}
                | {"erf": [result.to_dict() for result in model.erfs]}
                | {"cam": None if model.cam is None else model.cam.to_dict()}
                for model in self.models
            ],
            "not_measured": [asdict(item) for item in self.not_measured],
            "notes": list(self.notes),
        }

    def to_dataframe(self) -> Any:
        """Return `to_rows` as a pandas data frame.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return rows_to_dataframe(self.to_rows())

    def save(self, path: str | Path) -> Path:
        """Write the comparison, atomically: .html (the page), .json (all figures) or .csv (the rows).

        Args:
            path: The file; its folder must exist.

        Raises:
            ConfigError: The name ends in something else, or nothing was measured.
            MissingExtraError: The page needs Jinja2, which is not installed.
            RunError: The file can't be written.
        """
        from fullfield.measure.report import write_page

        path = Path(path)
        if path.suffix == ".html":
            return write_page(self, path)
        if path.suffix == ".json":
            write_json(path, self.to_dict())
            return path
        if path.suffix == ".csv":
            return write_rows(self.to_rows(), path)
        raise ConfigError(f"{path} must end in .html, .json or .csv (`plot` writes pictures)")

    def plot(self, path: str | Path) -> Path:
        """Draw accuracy (or, without any, throughput) over MACs to a .png, .svg or .pdf file; see `compare_plot`.

        Args:
            path: The file; its folder must exist.
        """
        from fullfield.measure.compare_plot import plot_comparison

        return plot_comparison(self, path)
