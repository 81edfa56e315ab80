"""What keeping the padding of a batch out of the images costs on this CPU: a ratio of forward passes, in one run.

    python benchmarks/padding_cpu.py        -> benchmarks/results/padding_cpu.csv

A batch of two images, 256x320 padded with 320x256 to 320x320 pixels, runs through each backbone as it is, inside
`keep_padding_out`, and as two images one after the other, which have no padding; in turn, round after round. Ratios are
taken round by round and then their median, because other work may run on the machine; the milliseconds beside them are
no more than a scale. The leak is what the option takes away: the largest difference of any map on an image's own area
from that of the image alone, over the largest value. Weights are random, biases and LayerScales too: as they start,
these would hide the leak.
"""

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from environment import environment

from fullfield.tasks.features import FeatureBackbone
from fullfield.tasks.padding import keep_padding_out

MODELS = ["racnn_pico", "racnn_tiny", "convnext_tiny"]
SIZES = ((256, 320), (320, 256))
PADDED = (320, 320)
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
RESULTS = Path(__file__).parent / "results"


def padded_batch() -> torch.Tensor:
    """Return the two images with zeros to the right of or below each."""
    images = torch.randn(2, 3, *PADDED)
    for image, (height, width) in zip(images, SIZES, strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
    return images


def make(name: str) -> FeatureBackbone:
    """Return a backbone whose biases, factors and statistics are as different from their start as training makes them.

    A copy of what `tests/tasks/test_padding.py` does: there it shows leaks to a test.
    """
    torch.manual_seed(0)
    model = FeatureBackbone(name)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.3 * torch.randn_like(parameter))
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 1.0
    model.train()(torch.randn(2, 3, *PADDED))
    return model.eval()


def masked(model: FeatureBackbone, images: torch.Tensor) -> list[torch.Tensor]:
    """Run the batch, entering and leaving the context included."""
    with keep_padding_out(model, SIZES, PADDED):
        return model(images)


def alone(model: FeatureBackbone, images: torch.Tensor) -> list[list[torch.Tensor]]:
    """Run each image by itself, cropping included."""
    layout = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    crops = [images[i : i + 1, :, :h, :w].contiguous(memory_format=layout) for i, (h, w) in enumerate(SIZES)]
    return [model(crop) for crop in crops]


def time_once(run: Callable[[], object]) -> float:
    """Return seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def leak(maps: list[torch.Tensor], of_each: list[list[torch.Tensor]]) -> float:
    """Return the largest difference of a padded batch's maps from those of each image alone, relative to their size."""
    pairs = [
        (of_batch[i : i + 1, :, : own.shape[2], : own.shape[3]], own)
        for i, own_maps in enumerate(of_each)
        for of_batch, own in zip(maps, own_maps, strict=True)
    ]
    return max(float((x - own).abs().max() / own.abs().max()) for x, own in pairs)


def measure(name: str, layout: str, rounds: int, about: dict[str, str]) -> dict[str, object]:
    """Time all three in turn and return a row."""
    model = make(name).to(memory_format=LAYOUTS[layout])
    images = padded_batch().contiguous(memory_format=LAYOUTS[layout])
    runs = {
        "unmasked": lambda: model(images),
        "masked": lambda: masked(model, images),
        "alone": lambda: alone(model, images),
    }
    times: dict[str, list[float]] = {key: [] for key in runs}
    for number in range(rounds + 1):
        for key, run in runs.items():
            seconds = time_once(run)
            if number:  # the first round warms up
                times[key].append(seconds)
    ratios = sorted(b / a for a, b in zip(times["unmasked"], times["masked"], strict=True))
    ratios_alone = [b / a for a, b in zip(times["unmasked"], times["alone"], strict=True)]
    of_each = alone(model, images)
    return {
        "model": name,
        "layout": layout,
        "images": " ".join(f"{h}x{w}" for h, w in SIZES),
        "padded": f"{PADDED[0]}x{PADDED[1]}",
        "rounds": rounds,
        "ms_unmasked": f"{1000 * statistics.median(times['unmasked']):.1f}",
        "masked_to_unmasked": f"{statistics.median(ratios):.3f}",
        "ratio_quarter": f"{ratios[len(ratios) // 4]:.3f}",
        "ratio_three_quarters": f"{ratios[3 * len(ratios) // 4]:.3f}",
        "alone_to_unmasked": f"{statistics.median(ratios_alone):.3f}",
        "leak_unmasked": f"{leak(model(images), of_each):.1e}",
        "leak_masked": f"{leak(masked(model, images), of_each):.1e}",
        **about,
        "precision": "float32",
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    about = environment()
    rows = []
    for name in MODELS:
        for layout in LAYOUTS:
            print(f"  {name}, {layout}", file=sys.stderr)
            rows.append(measure(name, layout, arguments.rounds, about))
    path = arguments.out / "padding_cpu.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(f"written to {path}\n")
    print(f"{'model':16} {'layout':14} {'masked':>8} {'quarters':>14} {'alone':>8} {'leak':>8} {'left':>8}")
    for row in rows:
        quarters = f"{row['ratio_quarter']} {row['ratio_three_quarters']}"
        print(
            f"{row['model']:16} {row['layout']:14} {row['masked_to_unmasked']:>6} x {quarters:>14}"
            f" {row['alone_to_unmasked']:>6} x {row['leak_unmasked']:>8} {row['leak_masked']:>8}"
        )


if __name__ == "__main__":
    main()
