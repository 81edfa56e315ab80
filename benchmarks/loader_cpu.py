"""Time reading images on this CPU: a folder, tar shards, Parquet, and images that are decoded already.

    python benchmarks/loader_cpu.py            -> benchmarks/results/loader_cpu.csv
    python benchmarks/loader_cpu.py --quick    -> a look in less than a minute, nothing is written

Two modes: the loader alone (read, decode, augment, collate), and training steps of racnn_pico fed by it. All sources
run in turn, round after round; a rate is the median over rounds and a ratio is taken to the folder within the round.
Every round is an epoch with an order of its own. The files are in the system's cache after the first round, which
does not count: this is the cost of formats and processes, not of a disk. Parquet needs pyarrow and is left out
without it.
"""

import argparse
import csv
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from environment import environment
from torch.utils.data import DataLoader

import fullfield
from fullfield.data import (
    Augment,
    ImageClassification,
    ImageData,
    Preprocess,
    SampleKey,
    collate,
    epoch_order,
    read_image_data,
    read_sample,
    train_transform,
)
from fullfield.errors import MissingExtraError
from fullfield.measure.tables import write_rows

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "caltech99"
RESULT = Path(__file__).parent / "results" / "loader_cpu.csv"
WORKERS = (0, 2)
SIDE, BATCH = 64, 32


class Epochs:
    """The keys of one epoch after the other, each in an order of its own."""

    def __init__(self, data: ImageData, count: int) -> None:
        self.data, self.count, self.epoch = data, count, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[SampleKey]:
        samples, blocks = self.data.splits["train"], self.data.blocks("train")
        order = epoch_order(len(samples), seed=0, epoch=self.epoch, blocks=blocks)
        keys = [SampleKey(self.epoch, index) for index in order[: self.count]]
        self.epoch += 1
        return iter(keys)


class Decoded(ImageClassification):
    """The same images and augmentation, with the reading and decoding done beforehand."""

    def __init__(self, data: ImageData, transform) -> None:
        super().__init__(data.splits["train"], transform)
        self.images = [read_sample(sample, min_side=SIDE) for sample in self.samples]

    def __getitem__(self, key):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key.epoch * len(self.samples) + key.index)
            return self.transform(self.images[key.index]), self.samples[key.index].label, key.index


def take(data: ImageData, count: int) -> ImageData:
    """Return the data with as many training images as are asked for, spread over the classes."""
    samples = data.splits["train"]
    count = min(count, len(samples))
    return replace(
        data, splits={**data.splits, "train": tuple(samples[i * len(samples) // count] for i in range(count))}
    )


def sources(data: ImageData, folder: Path) -> dict[str, ImageData]:
    """Return the data as it is, and packed into `folder`."""
    listed = folder / "list.csv"
    with listed.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        known = {sample.label for sample in data.splits["train"]}
        for split in ("train", "val"):
            for sample in data.splits[split]:
                if sample.label in known:
                    writer.writerow([sample.path.resolve(), data.classes[sample.label], split])
    found = {"folder": data}
    for name, kind in (("tar shards", "shards"), ("Parquet", "parquet")):
        try:
            packed = fullfield.pack(listed, folder / kind, to=kind, shard_size="8MB").out
        except MissingExtraError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        found[name] = read_image_data(packed)
    return found


def loaders(found: dict[str, ImageData], count: int) -> dict[tuple[str, int], DataLoader]:
    transform = train_transform(Preprocess(image_size=SIDE), Augment())
    made = {}
    for name, data in {**found, "decoded in memory": found["folder"]}.items():
        if name == "decoded in memory":
            dataset: ImageClassification = Decoded(data, transform)
        else:
            dataset = ImageClassification(data.splits["train"], transform, min_side=SIDE)
        for workers in WORKERS:
            made[name, workers] = DataLoader(
                dataset,
                BATCH,
                sampler=Epochs(data, count),
                num_workers=workers,
                collate_fn=collate,
                persistent_workers=workers > 0,
                drop_last=True,
            )
    return made


def epoch_rate(loader: DataLoader, step) -> float:
    """Return images a second of one epoch, each batch given to `step`."""
    start, images = time.perf_counter(), 0
    for batch in loader:
        step(batch)
        images += len(batch.labels)
    return images / (time.perf_counter() - start)


def training_step(classes: int):
    torch.manual_seed(0)
    model = fullfield.create_model("racnn_pico", num_classes=classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step(batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(batch.images), batch.labels).backward()
        optimizer.step()

    return step


def measure(found: dict[str, ImageData], count: int, rounds: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for mode, step in (("loader", lambda _: None), ("training step", training_step(len(found["folder"].classes)))):
        made = loaders(found, count)
        rates: dict[tuple[str, int], list[float]] = {key: [] for key in made}
        for number in range(rounds + 1):
            for key, loader in made.items():
                rate = epoch_rate(loader, step)
                if number:  # the first round fills the system's cache and starts the workers
                    rates[key].append(rate)
            print(f"  {mode}: round {number} of {rounds}", file=sys.stderr)
        for (name, workers), values in rates.items():
            ratios = [value / folder for value, folder in zip(values, rates["folder", workers], strict=True)]
            rows.append(
                {
                    "source": name,
                    "mode": mode,
                    "workers": workers,
                    "images_per_s": f"{statistics.median(values):.1f}",
                    "images_per_s_min": f"{min(values):.1f}",
                    "images_per_s_max": f"{max(values):.1f}",
                    "of_folder": f"{statistics.median(ratios):.3f}",
                    "of_folder_min": f"{min(ratios):.3f}",
                    "of_folder_max": f"{max(ratios):.3f}",
                    "images": count,
                    "rounds": rounds,
                    "image_size": SIDE,
                    "batch": BATCH,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="any data set; by default caltech99 of ../shared/data")
    parser.add_argument("--images", type=int, default=2400, help="training images, at most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if not arguments.data.exists():
        print(f"skipped: there is no {arguments.data}; name a data set with --data")
        return
    torch.set_num_threads(arguments.threads)
    rounds = 1 if arguments.quick else arguments.rounds
    data = take(read_image_data(arguments.data), 128 if arguments.quick else arguments.images)
    count = len(data.splits["train"]) // BATCH * BATCH
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(sources(data, Path(folder)), count, rounds)
    about = {"data": arguments.data.name, **environment()}
    print(f"{'mode':14} {'workers':>7} {'source':18} {'images/s':>9} {'of the folder':>14}")
    for row in rows:
        print(
            f"{row['mode']:14} {row['workers']:>7} {row['source']:18} {row['images_per_s']:>9} {row['of_folder']:>13}x"
        )
    if not arguments.quick:
        print(f"written to {write_rows([row | about for row in rows], arguments.out)}")


if __name__ == "__main__":
    main()
