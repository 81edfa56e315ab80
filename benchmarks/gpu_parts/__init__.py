"""The parts of `benchmarks/gpu.py`, one a file: each takes a `Session` and returns rows."""
