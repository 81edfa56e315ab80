"""Which implementation ("path") of an operator runs, decided in one place.

An operator has a plain reference, always there and the oracle of the tests, and faster paths that agree with
it within stated tolerances. A caller's `path=` argument wins, then the environment variable
`FULLFIELD_PATH_<OPERATOR>` (for tests and benchmarks), then the operator's own rule, which was measured by
`benchmarks/region_ops_cpu.py` or `benchmarks/depthwise_cpu.py`. Nothing falls back silently: a forced path that
does not exist is an error.
"""

from __future__ import annotations

import os

from fullfield.errors import ConfigError, nearest

__all__ = ["GPU_PATHS", "PATHS", "forced_path", "one_of"]

PATHS: dict[str, tuple[str, ...]] = {
    "dynamic_pwconv": ("reference", "bmm", "sdpa", "blocked"),
    "region_pwconv": ("reference", "bmm", "sdpa", "blocked"),
    "region_pool": ("reference", "strided"),
    "region_gate": ("reference", "broadcast", "gather"),
    "depthwise_conv2d": ("native", "nchw", "channels_last", "fft", "toeplitz"),
}
"""The paths of every operator, the reference first (for the depthwise convolution PyTorch's own is the reference)."""

GPU_PATHS: dict[str, tuple[str, ...]] = {"region_pwconv": ("triton",)}
"""Paths that run on some machines only. Forced elsewhere, the operator says what is missing."""


def one_of(what: str, value: str, known: tuple[str, ...]) -> str:
    """Return `value` if it is among `known`.

    Raises:
        ConfigError: Names the value, what exists and the nearest.
    """
    if value not in known:
        raise ConfigError(f"unknown {what} {value!r}: it is one of {', '.join(known)}{nearest(str(value), known)}")
    return value


def forced_path(operator: str, path: str | None) -> str | None:
    """Return the path that the caller or the environment asks for, or None where the rule decides.

    Args:
        operator: A key of `PATHS`; its `GPU_PATHS` may be forced too.
        path: The caller's `path=` argument.

    Raises:
        ConfigError: The path is not one of the operator's.
    """
    known = PATHS[operator] + GPU_PATHS.get(operator, ())
    if path is not None:
        return one_of(f"path of {operator}", path, known)
    variable = f"FULLFIELD_PATH_{operator.upper()}"
    forced = os.environ.get(variable)
    return one_of(f"path of {operator} in the environment variable {variable}", forced, known) if forced else None
