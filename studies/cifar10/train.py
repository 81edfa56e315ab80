"""Does RaCNN learn CIFAR-10 better than a ConvNeXt-like net of equal MACs, in minutes on two cores? Three seeds each.

    python studies/cifar10/train.py              -> results.csv and curves.csv beside this file, one row a run
    python studies/cifar10/page.py               -> README.md filled from them, docs/images/cifar10.png

Needs ../shared/data/cifar10. Every run is `fullfield.train` with recipes/cifar10.yaml, changed only by `CHANGES`, in a
process of its own. A run whose row is stored isn't repeated: to repeat one, delete its row. The images and the run
folders are kept in --work.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import subprocess
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from nets import NETS, counted
from unpack import unpack

import fullfield
from fullfield.files import atomic_write
from fullfield.measure.environment import environment
from fullfield.train.settings import TrainSettings

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.csv"
CURVES = HERE / "curves.csv"
RECIPE = HERE.parents[1] / "recipes" / "cifar10.yaml"
SOURCE = HERE.parents[2] / "shared" / "data" / "cifar10"
CHANGES: dict[str, Any] = {"epochs": 6}
SEEDS = (0, 1, 2)
Row = dict[str, str]


def settings(net: str, seed: int, images: Path, out: Path, **changes: Any) -> TrainSettings:
    """Return the settings of one run: the recipe, `CHANGES`, and `changes`, which win."""
    name, model_args = NETS[net]
    run: dict[str, Any] = {"data": str(images), "model": name, "model_args": model_args, "seed": seed, "out": str(out)}
    fixed = {"device": "cpu", "workers": 0, "overwrite": True}
    return TrainSettings.from_yaml(RECIPE, **run | fixed | CHANGES | changes)


def run(net: str, seed: int, images: Path, out: Path, threads: int) -> tuple[Row, list[Row]]:
    """Train one net with one seed; return its row of results.csv and its rows of curves.csv.

    `minutes` are of the clock and `cpu_minutes` of all the process's threads, both with the evaluation at the end.
    """
    torch.set_num_threads(threads)
    wall, processor = time.perf_counter(), time.process_time()
    result = fullfield.train(settings=settings(net, seed, images, out))
    minutes = {"minutes": time.perf_counter() - wall, "cpu_minutes": time.process_time() - processor}
    cost = counted(net)
    key = {"model": net, "seed": str(seed)}
    row = key | {
        "params": str(cost.params),
        "macs": str(cost.macs),
        "train_images": str(sum(1 for _ in (images / "train").glob("*/*.jpg"))),
        "epochs": str(result.settings.epochs),
        **{name: f"{value / 60:.2f}" for name, value in minutes.items()},
        "test_images": str(result.evaluation.result.images),
        "top1": f"{result.evaluation.result.top1:.4f}",
        **environment(),
        "commit": commit(),
    }
    with (result.run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        columns = ("epoch", "train_loss", "val_loss", "val_top1")
        curve = [key | {column: epoch[column] for column in columns} for epoch in csv.DictReader(file)]
    return row, curve


def commit() -> str:
    """Return the repository's commit, with "-dirty" if files differ from it."""
    command = ["git", "describe", "--always", "--dirty"]
    told = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)  # noqa: S603
    return told.stdout.strip() or "unknown"


def stored(file: Path) -> list[Row]:
    """Return the rows of a CSV file, none if there is no file."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def store(file: Path, rows: Iterable[Row]) -> None:
    """Add rows to a CSV file in place of those of the same net and seed; the order is that of `NETS` and the seeds."""
    fresh = list(rows)
    keys = {(row["model"], row["seed"]) for row in fresh}
    kept = [row for row in stored(file) if (row["model"], row["seed"]) not in keys]
    ordered = sorted(kept + fresh, key=lambda row: (list(NETS).index(row["model"]), int(row["seed"])))
    with atomic_write(file) as partial, partial.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, list(fresh[0]))
        writer.writeheader()
        writer.writerows(ordered)


def missing(rows: Iterable[Mapping[str, str]]) -> list[tuple[str, int]]:
    """Return the (net, seed) pairs without a row, both nets of a seed before the next seed."""
    done = {(row["model"], int(row["seed"])) for row in rows}
    return [(net, seed) for seed in SEEDS for net in NETS if (net, seed) not in done]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/cifar10"), help="folder for the images and the runs")
    parser.add_argument("--source", type=Path, default=SOURCE, help="where train.npz and test.npz lie")
    parser.add_argument("--threads", type=int, default=2, help="of one run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    arguments = parser.parse_args()

    arguments.work.mkdir(parents=True, exist_ok=True)
    images = unpack(arguments.source, arguments.work / "images").resolve()
    spawn = multiprocessing.get_context("spawn")  # each run begins with a clean torch and its own number of threads
    with ProcessPoolExecutor(arguments.jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
        runs = {
            pool.submit(run, net, seed, images, arguments.work / f"{net}-{seed}", arguments.threads): (net, seed)
            for net, seed in missing(stored(RESULTS))
        }
        for finished in as_completed(runs):
            row, curve = finished.result()
            store(CURVES, curve)  # first: a run counts as done once it is in results.csv
            store(RESULTS, [row])
            print(f"{row['model']}, seed {row['seed']}: top-1 {float(row['top1']):.1%}, {row['minutes']} minutes")


if __name__ == "__main__":
    main()
