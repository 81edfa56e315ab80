"""The parts of `benchmarks/gpu.py`, one a file: each takes a `Campaign` and returns rows."""
