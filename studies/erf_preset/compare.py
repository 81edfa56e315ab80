"""The preset `replknet` against a second implementation of the published procedure, on nets trained for an hour.

    fullfield train ../shared/data/caltech99 --model resnet50 --image-size 64 --batch-size 32 --epochs 44 --out RUN
    python studies/erf_preset/compare.py RUN IMAGES      -> rows of results.csv beside this file, and printed

The second implementation is that of tests/measure/test_erf_replknet.py, written from the authors' description. RUN was
stopped after about an hour; IMAGES is a folder of class folders, of which the first images are taken, at 1024 pixels.
"""

import argparse
import csv
import sys
from pathlib import Path

import torch

import fullfield
from fullfield.measure.environment import environment
from fullfield.measure.erf import erf
from fullfield.measure.erf_model import weights_of

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from tests.measure.test_erf_replknet import DTYPES, published_scores, published_squares  # noqa: E402

RESULTS = Path(__file__).parent / "results.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with (arguments.run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        history = list(csv.DictReader(file))
    name = arguments.run.name
    dtype = DTYPES[name]  # in float32 rounding decides some of ResNet's ReLUs
    model = fullfield.load(arguments.run).to(dtype).requires_grad_(False)
    ours = erf(
        model, arguments.images, preset="replknet", image_size=arguments.side, count=arguments.count, batch_size=1
    )
    scores = published_scores(model, arguments.images, arguments.side, arguments.count)
    theirs = published_squares(scores)
    rows = [
        {
            "model": name,
            "weights": weights_of(model),
            "epochs": history[-1]["epoch"],
            "minutes": round(sum(float(row["seconds"]) for row in history) / 60, 1),
            "val_top1": max(float(row["val_top1"]) for row in history),
            "images": arguments.count,
            "side": arguments.side,
            "dtype": str(dtype).removeprefix("torch."),
            "t": t,
            "ours": ours.area_ratio[t],
            "theirs": ratio,
            "difference": abs(ours.area_ratio[t] - ratio),
            "map_difference": float(abs(ours.map - scores).max() / scores.max()),
            **environment(),
        }
        for t, (_, ratio) in theirs.items()
    ]
    before = []
    if RESULTS.exists():
        with RESULTS.open(newline="", encoding="utf-8") as file:
            before = [row for row in csv.DictReader(file) if row["model"] != name]
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows([*before, *rows])
    for row in rows:
        print(f"{name}  t {row['t']:.2f}  ours {row['ours']:.6f}  theirs {row['theirs']:.6f}")


if __name__ == "__main__":
    main()
