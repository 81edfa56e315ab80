"""`benchmarks/gpu.py` runs every line on a CPU, and its bounds are those of a worked example."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
TABLES = ["ceilings", "correctness", "region", "attention", "depthwise", "nets"]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("FULLFIELD_PATH_REGION_PWCONV", None)
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_dry_run_reaches_every_part_and_writes_every_table(tmp_path):
    pytest.importorskip("triton")
    done = run("--dry-run", "--out", str(tmp_path), "--minutes", "20")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left out" not in done.stdout, done.stdout
    for name in TABLES:
        with (tmp_path / f"gpu_{name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert rows, name
        assert all(row["torch"] == torch.__version__ for row in rows), name
    with (tmp_path / "gpu_correctness.csv").open() as file:
        assert {row["holds"] for row in csv.DictReader(file)} == {"yes"}


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_and_measures_nothing(tmp_path):
    done = run("--out", str(tmp_path / "results"))
    assert done.returncode == 2
    assert "--dry-run" in done.stderr
    assert not (tmp_path / "results").exists()


def test_bounds_are_those_of_a_worked_example(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu_parts.bounds import Ceilings, RegionShape

    # 2 images of 8 channels in 2 heads, 6x6 in regions of 4: 16 windows of at most 4 pixels
    shape = RegionShape("example", 2, 8, 6, 4, 2)
    ceilings = Ceilings(bytes_per_s=1e6, flops_per_s=1e6, exps_per_s=1e6)
    assert shape.floors_us(ceilings, "forward") == {
        "memory": 2 * (2 * 8 * 36) * 2,
        "matrix": 2 * 2 * (2 * 2 * 16) * 4**2 * 4,
        "exp": (2 * 2 * 16) * 4**2,
    }
    assert shape.bound_us(ceilings, "forward+backward") == 7 * 2 * (2 * 2 * 16) * 4**2 * 4
