"""Does every head learn, from every form of annotation, on real images within minutes on a CPU?

    python studies/dense_heads/train.py --work FOLDER         -> results.csv beside this file, one row a run
    python studies/dense_heads/page.py                        -> README.md filled from it

Needs ../shared/data (blood cells, nuclei, CamVid). Every run is `fullfield.train` from random weights. A run whose row
is stored isn't repeated: to repeat one, delete its row. `--only NAME` runs one.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import torch
from forms import as_voc, as_yolo, few_nuclei

import fullfield
from fullfield.files import atomic_write
from fullfield.measure.environment import environment

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.csv"
SHARED = HERE.parents[2] / "shared" / "data"
LIGHT = ("fpn_channels=64", "convs=2")
TWO_STAGE = (
    *("fpn_channels=64", "box_features=256", "anchor_sizes=[12,24,48,96,192]"),
    *("train_proposals=300", "proposals=100", "sampled_regions=64"),  # far fewer than the papers': for a CPU
)
CELLS: dict[str, Any] = {"lr": 1e-3, "batch_size": 4, "vflip": True, "scale_jitter": "none"}
SMALL = CELLS | {"image_size": 128, "epochs": 3}
NUCLEI = SMALL | {"data": "nuclei", "head_args": (*TWO_STAGE, "mask_features=64"), "epochs": 4}
STREETS: dict[str, Any] = {"data": "camvid11", "image_size": 128, "long_side": 240, "batch_size": 8, "lr": 1e-3}

RUNS: dict[str, dict[str, Any]] = {
    "cells-fcos-long": CELLS
    | {"data": "bccd_coco", "head": "fcos", "head_args": LIGHT, "image_size": 240, "epochs": 8},
    "streets-upernet-long": STREETS | {"head": "upernet", "head_args": ("channels=64",), "epochs": 8},
    "cells-fcos": SMALL | {"data": "bccd_coco", "head": "fcos", "head_args": LIGHT},
    "cells-fcos-voc": SMALL | {"data": "voc", "head": "fcos", "head_args": LIGHT},
    "cells-fcos-yolo": SMALL | {"data": "yolo", "head": "fcos", "head_args": LIGHT},
    "cells-retinanet": SMALL | {"data": "bccd_coco", "head": "retinanet", "head_args": (*LIGHT, "norm=group")},
    "cells-faster": SMALL | {"data": "bccd_coco", "head": "faster_rcnn", "head_args": TWO_STAGE},
    "cells-cascade": SMALL | {"data": "bccd_coco", "head": "cascade_rcnn", "head_args": TWO_STAGE},
    "nuclei-mask": NUCLEI | {"head": "mask_rcnn"},
    "nuclei-cascade-mask": NUCLEI | {"head": "cascade_mask_rcnn"},
    "streets-fpn": STREETS | {"head": "fpn", "head_args": ("channels=128",), "epochs": 3},
    "streets-unet": STREETS | {"head": "unet", "head_args": ("channels=64",), "epochs": 6},
    "streets-segformer": STREETS | {"head": "segformer", "head_args": ("channels=64",), "epochs": 3},
}
FIXED = {
    "model": "racnn_pico",
    "model_args": ("layer_scale=0.1",),
    "device": "cpu",
    "workers": 0,
    "overwrite": True,
    "logger": ("none",),
    "seed": 0,
}
Row = dict[str, str]


def run(name: str, work: Path) -> Row:
    """Train one head; return its row. Figures are shares; `minutes` are of the clock, the evaluation included."""
    options = dict(RUNS[name])
    data = options.pop("data")
    forms = {
        "voc": lambda: as_voc(SHARED / "bccd_coco", work / "voc"),
        "yolo": lambda: as_yolo(SHARED / "bccd_coco", work / "yolo"),
        "nuclei": lambda: few_nuclei(SHARED / "nuclei_coco", work / "nuclei"),
    }
    place = forms[data]() if data in forms else SHARED / data
    wall, processor = time.perf_counter(), time.process_time()
    result = fullfield.train(str(place), out=str(work / name), **options, **FIXED)
    minutes = {"minutes": time.perf_counter() - wall, "cpu_minutes": time.process_time() - processor}
    with (result.run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        epochs = list(csv.DictReader(file))
    found = result.evaluation.result.scalars()
    figure = "miou" if "miou" in found else "mask_ap50" if "mask_ap50" in found else "ap50"
    values = [float(epoch[f"val_{figure}"] or 0) for epoch in epochs]
    return {
        "run": name,
        "data": data,
        "head": result.settings.head or "",
        "head_args": " ".join(result.settings.head_args),
        "image_size": str(result.settings.image_size),
        "batch_size": str(result.settings.batch_size),
        "epochs": str(result.settings.epochs),
        "figure": figure,
        "first": f"{values[0]:.4f}",
        "best": f"{max(values):.4f}",
        "by_epoch": " ".join(f"{value:.4f}" for value in values),
        "test_images": str(result.evaluation.result.images),
        "held_out": result.evaluation.split,
        "held_out_figure": f"{found[figure]:.4f}",
        "held_out_ap": f"{found['ap']:.4f}" if "ap" in found else "",
        "majority_miou": f"{found['majority_miou']:.4f}" if "majority_miou" in found else "",
        **{key: f"{value / 60:.2f}" for key, value in minutes.items()},
        "threads": str(torch.get_num_threads()),
        **{key: value for key, value in environment().items() if key != "threads"},
    }


def stored() -> list[Row]:
    """Return the rows of results.csv."""
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def store(row: Row) -> None:
    """Add a row to results.csv, in the order of `RUNS`; two processes may do so in turn."""
    rows = {old["run"]: old for old in stored()} | {row["run"]: row}
    with atomic_write(RESULTS) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerows(rows[name] for name in RUNS if name in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/dense_heads"), help="folder for the runs")
    parser.add_argument("--only", nargs="*", default=list(RUNS), choices=list(RUNS), help="runs to make")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    done = {row["run"] for row in stored()}
    for name in arguments.only:
        if name not in done:
            row = run(name, arguments.work.resolve())
            store(row)
            print(f"{name}: {row['figure']} {row['first']} -> {row['best']}, {row['minutes']} minutes")


if __name__ == "__main__":
    main()
