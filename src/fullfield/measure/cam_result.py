"""What a class-activation map gives: the map, what it explains, and how well it does."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fullfield.errors import ConfigError
from fullfield.files import atomic_write, write_json
from fullfield.measure.cam_scores import CamScores
from fullfield.measure.tables import Row, rows_to_dataframe, write_rows

__all__ = ["Cam"]


@dataclass(frozen=True)
class Cam:
    """The class-activation map of one image."""

    model: str
    weights: str
    """"trained", "random" or "unknown"."""
    method: str
    layer: str
    map_size: tuple[int, int]
    """(height, width) of the layer's map, in units."""
    source: str
    """The image's file, or what was given in its place."""
    task: str
    """"classify", "segment" or "detect"."""
    class_index: int
    class_name: str
    confidence: float
    """Of the class in the whole image, 0 to 1; see `cam_targets.Target`."""
    map: npt.NDArray[np.float32] = field(repr=False)
    """(H, W) in [0, 1]: enlarged from `map_size` and scaled to its own peak."""
    image: npt.NDArray[np.uint8] = field(repr=False)
    """(H, W, 3), what the model saw."""
    scores: CamScores | None = None
    """Deletion and insertion; None if they were not asked for."""
    box: tuple[float, float, float, float] | None = None
    """Of a detection: left, top, right, bottom, pixels."""
    note: str = ""
    """What the reader must know of the place that is explained; "" for nothing."""

    @property
    def empty(self) -> bool:
        """Whether nothing speaks for the class: every unit's contribution is negative, so the map is 0 throughout."""
        return not bool(self.map.any())

    def to_dict(self) -> dict[str, Any]:
        """Return all but the map and the image as plain JSON values."""
        scores = None
        if self.scores is not None:
            curves = {
                "deletion": self.scores.deletion,
                "insertion": self.scores.insertion,
                "random_deletion": self.scores.random_deletion,
                "random_insertion": self.scores.random_insertion,
            }
            scores = {
                name: {"auc": curve.auc, "share": list(curve.share), "confidence": list(curve.confidence)}
                for name, curve in curves.items()
            }
        return {
            "model": self.model,
            "weights": self.weights,
            "method": self.method,
            "layer": self.layer,
            "map_size": list(self.map_size),
            "image_size": list(self.map.shape),
            "source": self.source,
            "task": self.task,
            "class_index": self.class_index,
            "class_name": self.class_name,
            "confidence": self.confidence,
            "empty": self.empty,
            "box": None if self.box is None else list(self.box),
            "note": self.note,
            "scores": scores,
        }

    def to_rows(self) -> list[Row]:
        """Return one row, the curves by their areas, for a table of many results."""
        document = self.to_dict()
        scores, box = document.pop("scores"), document.pop("box")
        row = {k: "×".join(map(str, v)) if isinstance(v, list) else v for k, v in document.items()}
        row |= {name: None if box is None else box[i] for i, name in enumerate(("left", "top", "right", "bottom"))}
        names = ("deletion", "insertion", "random_deletion", "random_insertion")
        return [row | {name: None if scores is None else scores[name]["auc"] for name in names}]

    def to_dataframe(self) -> Any:
        """Return `to_rows` as a pandas data frame.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return rows_to_dataframe(self.to_rows())

    def save(self, path: str | Path) -> Path:
        """Write the result, atomically: .npz (map, image, numbers), .npy (the map), .json (numbers, curves), .csv.

        Raises:
            ConfigError: The name ends in something else.
            RunError: The file can't be written.
        """
        path = Path(path)
        if path.suffix == ".json":
            write_json(path, self.to_dict())
        elif path.suffix == ".csv":
            write_rows(self.to_rows(), path)
        elif path.suffix in (".npz", ".npy"):
            with atomic_write(path) as partial, partial.open("wb") as file:
                if path.suffix == ".npy":
                    np.save(file, self.map)
                else:
                    numbers = np.array(json.dumps(self.to_dict()))
                    np.savez_compressed(file, map=self.map, image=self.image, numbers=numbers)
        else:
            raise ConfigError(f"{path} must end in .npz, .npy, .json or .csv (`plot` writes pictures)")
        return path

    def plot(self, path: str | Path) -> Path:
        """Draw the image, the map over it, and the deletion and insertion curves to a .png, .svg or .pdf file.

        Raises:
            MissingExtraError: matplotlib is not installed.
            RunError: The file can't be written.
        """
        from fullfield.measure.cam_plot import plot_cams

        return plot_cams([self], path)
