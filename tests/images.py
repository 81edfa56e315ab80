"""Small photographs that a tiny model learns in a second, and runs on them that tests share.

Each class has its own colour under noise, so that three epochs are enough to tell them apart. The fixtures are
imported into the `conftest.py` of each folder that uses them. What they give is shared: tests must not change it.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

CLASSES = ("blue", "green", "red")
COLOURS = {"blue": (0, 0, 1), "green": (0, 1, 0), "red": (1, 0, 0), "grey": (1, 1, 1), "cyan": (0, 1, 1)}

TINY: dict[str, Any] = {
    "model": "racnn_pico",
    "model_args": ("dims=[8,16,24,32]", "depths=[1,1,1,1]"),
    "image_size": 32,
    "batch_size": 8,
    "epochs": 3,
    "lr": 5e-3,
    "ema": 0.5,
    "scale_min": 0.8,
    "workers": 0,
    "device": "cpu",
    "logger": ("none",),
}
"""Options of `fullfield.train` with which a run takes about a second."""

TINY_ARGV = [
    *("--model", "racnn_pico", "--model-args", "dims=[8,16,24,32]", "depths=[1,1,1,1]"),
    *("--image-size", "32", "--batch-size", "8", "--epochs", "3", "--lr", "5e-3", "--ema", "0.5"),
    *("--scale-min", "0.8", "--workers", "0", "--device", "cpu", "--logger", "none"),
]
"""The same on the command line."""


def write_photo(path: Path, colour: str, *, seed: int = 0, size: tuple[int, int] = (32, 32)) -> Path:
    """Write noise of a colour to `path`, in the format of its extension."""
    rng = np.random.default_rng([seed, *path.name.encode()])
    pixels = rng.integers(0, 100, (size[1], size[0], 3)) + 120 * np.array(COLOURS[colour])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def write_photos(root: Path, classes: Sequence[str] = CLASSES, *, each: int = 12, seed: int = 0) -> Path:
    """Write `root/class/00.jpg` and so on, `each` of every class, and return `root`."""
    for name in classes:
        for number in range(each):
            write_photo(root / name / f"{number:02}.jpg", name, seed=seed)
    return root


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a CSV file with a header."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def figures(run: Path) -> list[dict[str, str]]:
    """Return the rows of a run's metrics.csv without the columns that time decides."""
    timed = {"images_per_s", "seconds", "data_wait"}
    return [{k: v for k, v in row.items() if k not in timed} for row in read_rows(run / "metrics.csv")]


def best_weights(run: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a run's best checkpoint."""
    return load_file(run / "checkpoints" / "best.safetensors")


def same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors have the same names and are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of twelve photographs, without splits: `photos/class/00.jpg`."""
    return write_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="session")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on `photos` with the options `TINY`."""
    import fullfield

    return fullfield.train(photos, out=tmp_path_factory.mktemp("runs") / "finished", **TINY).run
