"""What `compare_dense` gives: figures of backbones under one head, as rows, files, a chart and a page."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from fullfield.errors import ConfigError, MissingExtraError
from fullfield.files import atomic_write, write_json
from fullfield.measure.compare_result import NotMeasured
from fullfield.measure.speed import SpeedRow
from fullfield.measure.tables import Row, write_rows

__all__ = ["DenseCompared", "DenseComparison", "DenseCost", "Size", "size_words"]

Size = tuple[int, int]
"""Height and width, pixels."""
TASKS = {"segment": "semantic segmentation", "detect": "detection"}


@dataclass(frozen=True)
class DenseCost:
    """Counts of one image."""

    size: Size
    """Of the image; it is counted with both sides rounded up to multiples of 32."""
    backbone_params: int
    params: int
    """Of the whole model, an auxiliary head included."""
    backbone_macs: int
    macs: int
    """Of the whole model in inference."""


@dataclass(frozen=True)
class DenseCompared:
    """The figures of one backbone under the head."""

    model: str
    costs: tuple[DenseCost, ...]
    """One a size; the first is the size that is timed."""
    speed: SpeedRow | None
    """One image a call in the faster memory layout; None if it was not timed or does not run."""

    def to_rows(self) -> list[Row]:
        """Return one row a size, plain values under the names of the CSV's columns; None where nothing was timed."""
        rows = []
        for index, cost in enumerate(self.costs):
            speed = self.speed if index == 0 else None
            memory = None if speed is None else speed.peak_memory_mb
            ratio = None if speed is None else speed.ratio
            rows.append(
                {
                    "model": self.model,
                    "height": cost.size[0],
                    "width": cost.size[1],
                    "backbone_params": cost.backbone_params,
                    "params": cost.params,
                    "backbone_macs": cost.backbone_macs,
                    "macs": cost.macs,
                    "layout": None if speed is None else speed.setting.layout,
                    "p50_ms": None if speed is None else round(speed.samples.percentile_ms(50), 2),
                    "p90_ms": None if speed is None else round(speed.samples.percentile_ms(90), 2),
                    "rounds": None if speed is None else len(speed.samples.seconds),
                    "ratio": None if ratio is None else round(ratio.median, 4),
                    "ratio_p10": None if ratio is None else round(ratio.low, 4),
                    "ratio_p90": None if ratio is None else round(ratio.high, 4),
                    "peak_memory_mb": None if memory is None else round(memory, 1),
                }
            )
        return rows


@dataclass(frozen=True)
class DenseComparison:
    """What `compare_dense` measured."""

    task: str
    head: str
    head_arguments: dict[str, Any]
    """Those that were given."""
    num_classes: int
    models: tuple[DenseCompared, ...]
    """In the order in which they were named; the first is the peer of the ratios."""
    not_measured: tuple[NotMeasured, ...]
    environment: dict[str, str]
    command: str = ""

    @property
    def title(self) -> str:
        """Task, head and classes in words."""
        given = "".join(f", {key} {value}" for key, value in self.head_arguments.items())
        return f"{TASKS[self.task]} with {self.head}{given}, {self.num_classes} classes"

    def to_rows(self) -> list[Row]:
        """Return one row a model and size, with what they have in common and the environment in every one."""
        common = {"task": self.task, "head": self.head, "num_classes": self.num_classes}
        return [common | row | self.environment for model in self.models for row in model.to_rows()]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {
            "task": self.task,
            "head": self.head,
            "head_arguments": self.head_arguments,
            "num_classes": self.num_classes,
            "command": self.command,
            "environment": self.environment,
            "models": [row for model in self.models for row in model.to_rows()],
            "not_measured": [asdict(item) for item in self.not_measured],
        }

    def save(self, path: str | Path) -> Path:
        """Write the comparison, atomically: .html (the page), .json or .csv (the rows).

        Args:
            path: The file; its folder must exist.

        Raises:
            ConfigError: The name ends in something else, or nothing was measured.
            MissingExtraError: The page needs Jinja2, which is not installed.
            RunError: The file can't be written.
        """
        path = Path(path)
        if path.suffix == ".html":
            page = self._page()
            with atomic_write(path) as partial:
                partial.write_text(page, encoding="utf-8")
            return path
        if path.suffix == ".json":
            write_json(path, self.to_dict())
            return path
        if path.suffix == ".csv":
            return write_rows(self.to_rows(), path)
        raise ConfigError(f"{path} must end in .html, .json or .csv (`plot` writes pictures)")

    def plot(self, path: str | Path) -> Path:
        """Draw MACs of backbone and head, and speed against the first model, to a .png, .svg or .pdf file.

        Args:
            path: The file; its folder must exist.

        Raises:
            ConfigError: No model could be counted, or the file's format is unknown.
            MissingExtraError: matplotlib is not installed.
            RunError: The file can't be written.
        """
        path = Path(path)
        kind = path.suffix.lstrip(".")
        if kind not in ("png", "svg", "pdf"):
            raise ConfigError(f"{path} must end in .png, .svg or .pdf")
        if not self.models:
            raise ConfigError(f"no model could be counted, so {path} would be empty")
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError as error:
            raise MissingExtraError("drawing needs matplotlib: pip install 'fullfield[look]'") from error
        ratios = {m.model: m.speed.ratio for m in self.models if m.speed is not None and m.speed.ratio is not None}
        panels = len(self.models[0].costs) + bool(ratios)
        figure = Figure(figsize=(3.6 * panels + 1.8, 0.42 * len(self.models) + 1.9), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        names = [model.model for model in self.models]
        for index, panel in enumerate(axes[: len(self.models[0].costs)]):
            costs = [model.costs[index] for model in self.models]
            net = [cost.backbone_macs / 1e9 for cost in costs]
            rest = [(cost.macs - cost.backbone_macs) / 1e9 for cost in costs]
            panel.barh(names, net, color="#1f5fbf", label="backbone")
            panel.barh(names, rest, left=net, color="#b5d0f5", label="head")
            panel.set_title(f"GMACs at {size_words(costs[0].size)}", fontsize=9)
        if ratios:
            told = [ratios[name].median if name in ratios else 0.0 for name in names]
            axes[-1].barh(names, told, color="#a8430c")
            axes[-1].axvline(1.0, color="#666666", linewidth=0.8)
            axes[-1].set_title(f"speed / {names[0]} at {size_words(self.models[0].costs[0].size)}", fontsize=9)
        for number, panel in enumerate(axes):
            panel.invert_yaxis()
            panel.tick_params(labelsize=8, labelleft=number == 0)
            panel.grid(axis="x", alpha=0.25)
            panel.spines[["top", "right"]].set_visible(False)
        figure.legend(
            *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8
        )
        env = self.environment
        told_by = f"{self.title}\n{env['device']}, threads: {env['threads']}, torch {env['torch']}, {env['date']}"
        figure.suptitle(told_by, fontsize=7.5, color="#666666")
        with atomic_write(path) as partial:
            figure.savefig(partial, format=kind, dpi=150)
        return path

    def _page(self) -> str:
        if not self.models:
            reasons = "; ".join(f"{item.model}: {item.reason}" for item in self.not_measured)
            raise ConfigError(f"no model could be built, so the page would be empty ({reasons})")
        try:
            import jinja2
        except ModuleNotFoundError as error:
            raise MissingExtraError("a page needs Jinja2: pip install 'fullfield[look]'") from error
        text = resources.files("fullfield.measure").joinpath("dense_comparison.html.jinja").read_text(encoding="utf-8")
        environment = jinja2.Environment(
            autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
        )
        return environment.from_string(text).render(found=self, sizes=self.models[0].costs, words=size_words)


def size_words(size: Size) -> str:
    """Return a size in words: height × width."""
    return f"{size[0]}×{size[1]}"
