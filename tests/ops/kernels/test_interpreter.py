"""Run interpreted.py in a process of its own: Triton reads TRITON_INTERPRET when it is imported."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).parent / "interpreted.py"
ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def run(marks: str, names: str = "") -> None:
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", marks]
    words += ["-k", names, str(CASES)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("FULLFIELD_PATH_REGION_PWCONV", None)
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_kernels_agree_with_float64_in_the_interpreter():
    run("not slow")


@pytest.mark.slow
def test_kernels_agree_with_float64_over_random_shapes():
    run("slow", "not thousand")


@pytest.mark.slow
@pytest.mark.timeout(4800)  # the interpreter takes a third of a second a step
@pytest.mark.parametrize("dtype", ["torch.bfloat16", "torch.float16"])
def test_a_thousand_training_steps_stay_finite_and_learn_in_the_interpreter(dtype: str):
    run("slow", f"thousand and {dtype}")
