"""What a measurement of shift consistency gives: of the answer, and of every stage's map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fullfield.measure.tables import Row, rows_to_dataframe, write_rows

__all__ = ["Consistency", "Estimate", "Shift", "StageShift"]


@dataclass(frozen=True)
class Estimate:
    """A mean over images."""

    mean: float
    error: float | None
    """Its standard error; None for a single image."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Average one value an image."""
        count = len(values)
        error = float(np.std(values, ddof=1) / np.sqrt(count)) if count > 1 else None
        return cls(float(np.mean(values)), error)


@dataclass(frozen=True)
class Consistency:
    """How alike a classifier answers to shifted copies of an image."""

    agreement: Estimate
    """Share of the pairs of copies with the same likeliest class, 0 to 1."""
    drift: Estimate
    """Mean difference of the probability of one class between two copies; the class is that of the first."""


@dataclass(frozen=True)
class StageShift:
    """How far a layer's map is from moving with the image; None where the shift does not exist."""

    layer: str
    map_size: tuple[int, int]
    """(height, width), in units."""
    stride: tuple[float, float]
    """Pixels a unit."""
    circular: Estimate | None
    """Error under circular shifts by whole units; None if the stride is not whole or the map has one unit."""
    one_pixel: Estimate | None
    """Error under the circular shift by one pixel down and right; None for a map of one unit."""
    cropped: Estimate | None
    """Error on the common part of two windows, whole units apart; None if the stride exceeds the largest shift."""


@dataclass(frozen=True)
class Shift:
    """Shift consistency and equivariance errors of one model."""

    model: str
    weights: str
    """"trained", "random" or "unknown"."""
    image_size: tuple[int, int]
    """(H, W) that the model saw, pixels."""
    images: str
    """What was averaged over, in words."""
    count: int
    max_shift: int
    """Pixels, down and right."""
    copies: int
    """Shifted copies of an image, of which all pairs are compared."""
    seed: int
    circular: Consistency | None
    """Under circular shifts; None for noise, and for models that do not return logits (B, K)."""
    cropped: Consistency | None
    """Of windows cut from a larger image."""
    stages: tuple[StageShift, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        document = asdict(self)
        document["image_size"] = list(self.image_size)
        document["stages"] = [
            stage | {"map_size": list(stage["map_size"]), "stride": list(stage["stride"])}
            for stage in document["stages"]
        ]
        return document

    def to_rows(self) -> list[Row]:
        """Return one row a stage, with the consistency repeated; one row without a stage if none was measured."""
        shared: Row = {
            "model": self.model,
            "weights": self.weights,
            "image_size": "×".join(map(str, self.image_size)),
            "images": self.images,
            "count": self.count,
            "max_shift": self.max_shift,
            "copies": self.copies,
            "seed": self.seed,
        }
        for name, found in (("circular", self.circular), ("cropped", self.cropped)):
            shared |= _columns(f"{name}_agreement", None if found is None else found.agreement)
            shared |= _columns(f"{name}_drift", None if found is None else found.drift)
        rows = [
            shared
            | {
                "layer": stage.layer,
                "map_size": "×".join(map(str, stage.map_size)),
                "stride": "×".join(f"{side:g}" for side in stage.stride),
            }
            | _columns("circular_error", stage.circular)
            | _columns("one_pixel_error", stage.one_pixel)
            | _columns("cropped_error", stage.cropped)
            for stage in self.stages
        ]
        return rows or [shared]

    def to_dataframe(self) -> Any:
        """Return `to_rows` as a pandas data frame.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return rows_to_dataframe(self.to_rows())

    def save(self, path: str | Path) -> Path:
        """Write the rows to a .csv or .json file; see `tables.write_rows`."""
        return write_rows(self.to_rows(), path)

    def plot(self, path: str | Path) -> Path:
        """Draw the consistency and the errors by stage to a .png, .svg or .pdf file.

        Raises:
            ConfigError: The file's format is unknown.
            MissingExtraError: matplotlib is not installed.
            RunError: The file can't be written.
        """
        from fullfield.measure.shift_plot import plot_shifts

        return plot_shifts([self], path)


def _columns(name: str, estimate: Estimate | None) -> Row:
    return {name: estimate and estimate.mean, f"{name}_se": estimate and estimate.error}
