"""The whole campaign on one GPU in under eight minutes: correctness, ceilings, every operator, every net.

    PYTHONPATH=src python benchmarks/gpu.py                    -> benchmarks/results/gpu_*.csv, a short table last
    PYTHONPATH=src python benchmarks/gpu.py --parts correctness ceilings region
    PYTHONPATH=src python benchmarks/gpu.py --dry-run          every line on a CPU, tiny sizes; no figure counts

It needs torch, torchvision, timm, numpy, safetensors and triton. Each part writes its CSV as soon as it is done, and
none starts a measurement after its share of the time, so that a run that is cut short keeps what it has. What failed
or was left out is listed. `benchmarks/GPU.md` says what is expected and why. All weights are random.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

if "--dry-run" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported

import torch
from environment import environment
from gpu_parts import ceilings, correctness, depthwise, nets, region_ops
from gpu_parts.bounds import Ceilings
from gpu_parts.campaign import Campaign, Row

from fullfield.measure.environment import environment as package_environment
from fullfield.measure.tables import write_rows

# the share of the time after which a part starts nothing more
PARTS = {"ceilings": 0.05, "correctness": 0.25, "region": 0.45, "attention": 0.5, "depthwise": 0.62, "nets": 1.0}
RESULTS = Path(__file__).parent / "results"


def run_part(name: str, campaign: Campaign, reached: Ceilings) -> list[Row]:
    """Return the rows of one part other than the ceilings."""
    if name == "correctness":
        region_ops.forced("triton" if not campaign.dry else None)  # the training steps go through the kernels
        try:
            return correctness.measure(campaign)
        finally:
            region_ops.forced(None)
    if name == "region":
        return region_ops.measure(campaign, reached)
    if name == "attention":
        return region_ops.measure_attention(campaign, reached)
    if name == "depthwise":
        return depthwise.measure(campaign, reached)
    return nets.measure(campaign)


def summary(tables: dict[str, list[Row]]) -> list[str]:
    """Return the lines of the short table."""
    lines = []
    checked = tables.get("correctness", [])
    if checked:
        lines.append(f"correctness: {sum(row['holds'] == 'yes' for row in checked)} of {len(checked)} hold")
    region = [row for row in tables.get("region", []) if "warps" not in row["path"]]
    for key in dict.fromkeys((row["shape"], row["direction"]) for row in region):
        found = {row["path"]: row for row in region if (row["shape"], row["direction"]) == key}
        ours = found.get("triton")
        told = "  ".join(f"{path} {row['us']}" for path, row in found.items())
        part = f"  {100 * float(ours['fraction_of_bound']):.0f} % of bound" if ours else ""
        lines.append(f"{key[0]:12} {key[1]:17} us  {told}{part}")
    for mode in ("forward", "training step"):
        rows = [row for row in tables.get("nets", []) if row["mode"] == mode]
        best = {}
        for row in rows:
            kept = best.get(row["model"])
            if kept is None or float(row["images_per_s"]) > float(kept["images_per_s"]):
                best[row["model"]] = row
        for name, row in best.items():
            setting = f"{row['layout']} {row['form']} {row['path']}"
            lines.append(f"{name:30} {mode:14} {row['images_per_s']:>10} images/s  {row['peak_mb']:>7} MB  {setting}")
        for fast, peer, paper in (
            ("tiny", "slak_tiny", 7.28),
            ("small", "replknet_31b", 3.74),
            ("small", "moganet_small", 2),
        ):
            ours = best.get(f"racnn_{fast}")
            other = [row for row in rows if row["model"] == peer and (row["layout"], row["form"]) == ("nchw", "eager")]
            if ours and other:
                speed = float(ours["images_per_s"]) / float(other[0]["images_per_s"])
                lines.append(f"racnn_{fast} is {speed:.2f} x {peer} in its official form, {mode} (paper: {paper})")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=7.5, help="start no measurement later than this")
    parser.add_argument("--out", type=Path, help="folder of the CSVs; benchmarks/results, or a temporary one when dry")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, kernels in Triton's interpreter")
    arguments = parser.parse_args()
    dry = arguments.dry_run
    if not dry and not torch.cuda.is_available():
        print("there is no CUDA device here; --dry-run runs every line on the CPU", file=sys.stderr)
        return 2
    out = arguments.out or (Path(tempfile.mkdtemp()) if dry else RESULTS)
    out.mkdir(parents=True, exist_ok=True)
    device = "cpu" if dry else "cuda"
    about = environment() | package_environment(device)
    start, reached, tables = time.monotonic(), Ceilings(), {}
    campaign = Campaign(device, dry, deadline=0.0)
    for name in arguments.parts:
        campaign.deadline = start + 60 * arguments.minutes * PARTS[name]
        if name == "ceilings":
            reached, rows = ceilings.measure(campaign)
        else:
            rows = run_part(name, campaign, reached)
        tables[name] = rows
        if rows:
            write_rows([row | about for row in rows], out / f"gpu_{name}.csv")
        print(f"{name}: {len(rows)} rows after {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    for failure in campaign.failures:
        print(f"left out or failed: {failure}")
    for line in summary(tables):
        print(line)
    print(f"written to {out}")
    return 1 if any("out of time" not in failure for failure in campaign.failures) else 0


if __name__ == "__main__":
    sys.exit(main())
