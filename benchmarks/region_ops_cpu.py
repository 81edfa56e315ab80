"""Time every path of region_pwconv on this CPU, forward and forward + backward; the dispatch rule comes from it.

    python benchmarks/region_ops_cpu.py            -> benchmarks/results/region_ops_cpu.csv

Paths of one shape are timed in turn, round after round, so that a noisy machine slows all of them alike; a figure
is the median over rounds, and the ratio is to the fastest path of the shape.
"""

import argparse
import csv
import statistics
import time
from pathlib import Path

import torch
from environment import environment

from fullfield.ops import PATHS, region_pwconv

# name, channels, side, region size, heads: the stages of racnn_tiny and racnn_pico at 224, the literal operator,
# and detection sizes
SHAPES = [
    ("tiny 1", 64, 56, 7, 1),
    ("tiny 2", 128, 28, 7, 2),
    ("tiny 3", 256, 14, 7, 4),
    ("tiny 4", 512, 7, 1, 8),
    ("pico 1", 32, 56, 7, 1),
    ("pico 3", 128, 14, 7, 4),
    ("literal 2", 128, 28, 7, 1),
    ("literal 3", 256, 14, 7, 1),
    ("detection 1", 64, 200, 7, 1),
    ("detection 3", 256, 50, 7, 4),
]


def time_once(run) -> float:
    """Return milliseconds of one call."""
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "region_ops_cpu.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    about = environment()
    rows = []
    paths = [path for path in PATHS["region_pwconv"] if path != "reference"]
    for name, channels, side, region_size, heads in SHAPES:
        batch = max(1, arguments.batch // 4) if side > 100 else arguments.batch
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(batch, channels, side, side).contiguous(memory_format=layout)
            x_grad, gradient = x.clone().requires_grad_(), torch.randn_like(x)
            scale = torch.full((heads,), 6.0)

            def forward(path, x=x, scale=scale, region_size=region_size, heads=heads):
                with torch.inference_mode():
                    region_pwconv(x, scale, region_size=region_size, heads=heads, path=path)

            def both(path, x=x_grad, g=gradient, scale=scale, region_size=region_size, heads=heads):
                region_pwconv(x, scale, region_size=region_size, heads=heads, path=path).backward(g)

            for direction, run in (("forward", forward), ("forward+backward", both)):
                times = {path: [] for path in paths}
                for _ in range(arguments.rounds + 1):
                    for path in paths:
                        times[path].append(time_once(lambda run=run, path=path: run(path)))
                medians = {path: statistics.median(values[1:]) for path, values in times.items()}
                best = min(medians.values())
                for path in paths:
                    rows.append(
                        {
                            "shape": name,
                            "batch": batch,
                            "channels": channels,
                            "side": side,
                            "region_size": region_size,
                            "heads": heads,
                            "layout": "channels_last" if layout == torch.channels_last else "nchw",
                            "direction": direction,
                            "path": path,
                            "median_ms": f"{medians[path]:.3f}",
                            "ratio_to_fastest": f"{medians[path] / best:.2f}",
                            **about,
                        }
                    )
                told = "  ".join(f"{path} {medians[path]:8.2f}" for path in paths)
                print(f"{name:12} {rows[-1]['layout']:14} {direction:17} ms  {told}", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
