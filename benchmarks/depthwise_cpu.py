"""Time every path of depthwise_conv2d on this CPU, each direction and layout; its rule comes from it.

    python benchmarks/depthwise_cpu.py --threads 1 2     -> benchmarks/results/depthwise_cpu.csv

It runs what `fullfield bench --op depthwise` runs, once for each number of threads, and prints where the rule of
`ops/depthwise_rule.py` picks another path than the fastest. Its constants are MACS_PER_NS (macs / ms / 1e6 of the
direct paths, less the taps on padding) and FFT_NS_PER_POINT.
"""

import argparse
from pathlib import Path

import torch
from environment import environment

from fullfield.measure.op_speed import bench_depthwise
from fullfield.measure.tables import write_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "depthwise_cpu.csv")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        measured = bench_depthwise(batch=arguments.batch, channels=arguments.channels, rounds=arguments.rounds)
        print(measured.table(), flush=True)
        rows += [row | environment() for row in measured.to_rows()]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    print(f"written to {write_rows(rows, arguments.out)}")


if __name__ == "__main__":
    main()
