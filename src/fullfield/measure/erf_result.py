"""What a measurement of the effective receptive field gives: the map, its numbers, and what it was taken from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fullfield.errors import ConfigError
from fullfield.files import atomic_write, write_json
from fullfield.measure.erf_statistics import Area, Map
from fullfield.measure.receptive_field import ReceptiveField
from fullfield.measure.tables import Row, rows_to_dataframe, write_rows

__all__ = ["Erf"]


@dataclass(frozen=True)
class Erf:
    """The effective receptive field of one unit, averaged over images.

    `errors` holds the standard error over the images of every number that has one, under the number's name; it is
    empty for a single image.
    """

    model: str
    weights: str
    """"trained", "random" or "unknown"."""
    layer: str
    map_size: tuple[int, int]
    """(height, width) of the layer's map, in units."""
    position: tuple[int, int]
    """(row, column) of the unit."""
    centre: tuple[int, int]
    """The pixel from which distances count."""
    images: str
    """What was averaged over, in words."""
    count: int
    """How many images."""
    channels: str | int
    gradient: str
    preset: str
    map: Map = field(repr=False)
    """(H, W), mean over the images of the gradient part chosen, summed over the image's channels. It is what RepLKNet's
    script saves; with gradient="signed" it has negative values, and its magnitude gives the numbers."""
    squares: dict[float, Area]
    """t -> the smallest centred square with the share t of the mass."""
    rectangles: dict[float, Area]
    """t -> the smallest centred rectangle; none for the preset replknet, which knows only squares."""
    profile: Map = field(repr=False)
    """Mean contribution at each distance from the centre, entry k at k pixels."""
    half_mass_radius: float
    """Radius of the centred disc with half of the mass, pixels."""
    coverage: float
    """Share of the pixels above 1e-3 of the peak."""
    support: float
    """Share of the pixels that contribute at all."""
    elongation: float
    """0 round, 1 a line."""
    strips: float
    """1 an upright cross, 0 round, -1 a diagonal cross."""
    theory: ReceptiveField
    """The theoretical field."""
    probed: tuple[int, int, int, int] | None = None
    """Where theory could not follow: the unit's window in this image found by experiment."""
    outside: float | None = None
    """Mean share of the mass outside the objects, where they were given."""
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def area_ratio(self) -> dict[float, float]:
        """T -> r(t), the share of the image's area in the smallest centred square."""
        return {share: area.ratio for share, area in self.squares.items()}

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.map.shape[0], self.map.shape[1]

    @property
    def bound(self) -> str:
        """The theoretical field in a few words."""
        if self.theory.followed or self.probed is None:
            return str(self.theory)
        top, left, bottom, right = self.probed
        if (bottom - top, right - left) == self.image_size:
            return "the whole image (probed)"
        return f"{bottom - top}×{right - left} px (probed)"

    def to_dict(self) -> dict[str, Any]:
        """Return all but the map as plain JSON values."""
        return {
            "model": self.model,
            "weights": self.weights,
            "layer": self.layer,
            "map_size": list(self.map_size),
            "position": list(self.position),
            "image_size": list(self.image_size),
            "centre": list(self.centre),
            "images": self.images,
            "count": self.count,
            "channels": self.channels,
            "gradient": self.gradient,
            "preset": self.preset,
            "theoretical": self.bound,
            "squares": {str(t): {"side": a.height, "area_ratio": a.ratio} for t, a in self.squares.items()},
            "rectangles": {
                str(t): {"height": a.height, "width": a.width, "area_ratio": a.ratio}
                for t, a in self.rectangles.items()
            },
            "half_mass_radius": self.half_mass_radius,
            "coverage": self.coverage,
            "support": self.support,
            "elongation": self.elongation,
            "strips": self.strips,
            "outside": self.outside,
            "profile": self.profile.tolist(),
            "errors": self.errors,
        }

    def to_rows(self) -> list[Row]:
        """Return one row a threshold, with everything else repeated, for a table of many results."""
        document = self.to_dict()
        squares, rectangles, errors = (document.pop(key) for key in ("squares", "rectangles", "errors"))
        del document["profile"]
        shared = {k: "×".join(map(str, v)) if isinstance(v, list) else v for k, v in document.items()}
        return [
            shared
            | {"share": float(t), "side": square["side"], "area_ratio": square["area_ratio"]}
            | {"area_ratio_error": errors.get(f"area_ratio {t}")}
            | {"rectangle_ratio": rectangles.get(t, {}).get("area_ratio")}
            for t, square in squares.items()
        ]

    def to_dataframe(self) -> Any:
        """Return `to_rows` as a pandas data frame.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return rows_to_dataframe(self.to_rows())

    def save(self, path: str | Path) -> Path:
        """Write the result, atomically: .npz (map and numbers), .npy (the map), .json (the numbers), .csv (the rows).

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
                    np.savez_compressed(file, map=self.map, numbers=np.array(json.dumps(self.to_dict())))
        else:
            raise ConfigError(f"{path} must end in .npz, .npy, .json or .csv (`plot` writes pictures)")
        return path

    def plot(self, path: str | Path) -> Path:
        """Draw the map, its squares and its radial profile to a .png, .svg or .pdf file.

        Raises:
            MissingExtraError: matplotlib is not installed.
            RunError: The file can't be written.
        """
        from fullfield.measure.erf_plot import plot_erfs

        return plot_erfs([self], path)
