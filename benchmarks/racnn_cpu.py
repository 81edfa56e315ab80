"""RaCNN beside timm's nets on this CPU: forward and training step, peak memory, and where the time goes.

    python benchmarks/racnn_cpu.py        -> benchmarks/results/racnn_cpu.csv and racnn_cpu_operators.csv

All nets run in turn, round after round, in one process, each in both memory layouts; a ratio is taken round by round
between each net's faster layout and then its median, so that a noisy machine does not decide. Peak memory is that
of a process of its own. Nothing here needs trained weights: all are random.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import timm
import torch
from environment import environment
from torch.profiler import ProfilerActivity, profile

import fullfield
from fullfield.models.flops import count_flops

SUBJECT = "racnn_tiny"
FUSED = "racnn_tiny fused"  # norms folded into convolutions, as one would deploy it; forward only
PEERS = ["resnet50", "convnext_tiny", "swin_tiny_patch4_window7_224"]
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
RESULTS = Path(__file__).parent / "results"


def make(name: str, layout: str, batch: int, mode: str):
    """Return a call that runs one forward pass or one training step."""
    torch.manual_seed(0)
    model = fullfield.create_model(name.removesuffix(" fused"))
    if name == FUSED:
        model.fuse()
    model.to(memory_format=LAYOUTS[layout])
    images = torch.randn(batch, 3, 224, 224).contiguous(memory_format=LAYOUTS[layout])
    if mode == "forward":
        model.eval()

        def forward() -> None:
            with torch.inference_mode():
                model(images)

        return forward
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    labels = torch.randint(1000, (batch,))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def time_once(run) -> float:
    """Return seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak_memory_mb(name: str, layout: str, batch: int, mode: str, threads: int) -> float:
    """Return by how much one call raises the peak memory of a process of its own, weights included."""
    words = [sys.executable, __file__, "--peak", json.dumps([name, layout, batch, mode, threads])]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def print_peak(name: str, layout: str, batch: int, mode: str, threads: int) -> None:
    """Print the figure of `peak_memory_mb`; runs in the process of its own."""
    torch.set_num_threads(threads)
    before = _high_water_mb()
    run = make(name, layout, batch, mode)
    run()
    run()
    print(_high_water_mb() - before)


def _high_water_mb() -> float:
    """Peak resident memory of this process; getrusage's would carry over the parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return float(line.split()[1]) / 1024
    raise SystemExit("this benchmark reads /proc/self/status, which only Linux has")


def operator_shares(name: str, layout: str, batch: int, mode: str) -> list[tuple[str, float]]:
    """Return each operator's share of the time inside operators, the largest first."""
    run = make(name, layout, batch, mode)
    run()
    with profile(activities=[ProfilerActivity.CPU]) as measured:
        run()
    events = measured.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    shares = [(event.key, event.self_cpu_time_total / total) for event in events]
    return sorted(shares, key=lambda share: -share[1])[:15]


def measure(batch: int, mode: str, rounds: int, threads: int, about: dict[str, str]) -> list[dict[str, object]]:
    """Time all nets in turn and return one row a net."""
    names = [SUBJECT, *([FUSED] if mode == "forward" else []), *PEERS]
    runs = {(name, layout): make(name, layout, batch, mode) for name in names for layout in LAYOUTS}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for number in range(rounds + 1):
        for key, run in runs.items():
            seconds = time_once(run)
            if number:  # the first round warms up
                times[key].append(seconds)
        print(f"  {mode}, batch {batch}: round {number} of {rounds}", file=sys.stderr)
    del runs
    best = {name: min(LAYOUTS, key=lambda layout, n=name: statistics.median(times[n, layout])) for name in names}
    gmacs = {name: _gmacs(name) for name in names}
    rows: list[dict[str, object]] = []
    for name in names:
        seconds = times[name, best[name]]
        pairs = [other / own for own, other in zip(times[SUBJECT, best[SUBJECT]], seconds, strict=True)]
        rows.append(
            {
                "model": name,
                "mode": mode,
                "batch": batch,
                "layout": best[name],
                "images_per_s": f"{batch / statistics.median(seconds):.2f}",
                "gmacs": f"{gmacs[name]:.3f}",
                "speed_of_racnn_tiny_to_it": f"{statistics.median(pairs):.3f}",
                "ratio_min": f"{min(pairs):.3f}",
                "ratio_max": f"{max(pairs):.3f}",
                "per_mac": f"{statistics.median(pairs) * gmacs[SUBJECT] / gmacs[name]:.3f}",
                "peak_memory_mb": f"{peak_memory_mb(name, best[name], batch, mode, threads):.0f}",
                **about,
                "precision": "float32",
            }
        )
    return rows


def _gmacs(name: str) -> float:
    with torch.device("meta"):
        return count_flops(timm.create_model(name.removesuffix(" fused")), (3, 224, 224)) / 2e9


def write(path: Path, rows: list[dict[str, object]]) -> None:
    """Write rows as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(f"written to {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print_peak(*json.loads(arguments.peak))
        return
    torch.set_num_threads(arguments.threads)
    about = environment()
    rows, shares = [], []
    for mode in ("forward", "training step"):
        rows += measure(arguments.batch, mode, arguments.rounds, arguments.threads, about)
        layouts = {str(row["model"]): str(row["layout"]) for row in rows if row["mode"] == mode}
        for name in (SUBJECT, "convnext_tiny"):
            for operator, share in operator_shares(name, layouts[name], arguments.batch, mode):
                shares.append({"model": name, "mode": mode, "operator": operator, "share": f"{share:.4f}", **about})
    write(arguments.out / "racnn_cpu.csv", rows)
    write(arguments.out / "racnn_cpu_operators.csv", shares)
    print(f"\n{'model':30} {'mode':14} {'images/s':>9} {'racnn_tiny is':>14} {'per MAC':>8} {'peak MB':>8}")
    for row in rows:
        ratio = f"{row['speed_of_racnn_tiny_to_it']} x"
        print(
            f"{row['model']:30} {row['mode']:14} {row['images_per_s']:>9} {ratio:>14} {row['per_mac']:>8}"
            f" {row['peak_memory_mb']:>8}"
        )


if __name__ == "__main__":
    main()
