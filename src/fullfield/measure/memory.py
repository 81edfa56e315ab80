"""Peak memory of a call: of the process on a CPU, of the allocator on a GPU.

On Linux the kernel keeps the highest resident size that a process ever had and lets the process reset it, so that
one process can measure many calls. It sees whole pages that were touched, the heap's slack included; what a call
needs is the peak less what was resident before it.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

__all__ = ["peak_memory_mb"]

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory_mb(call: Callable[[], Any], device: str | torch.device = "cpu") -> float | None:
    """Return by how much a call raises the memory in use at its highest, in MB (2^20 bytes).

    Args:
        call: What to measure, without arguments; it is called once, and should have been called before, so that what
            is allocated once and for all is not counted.
        device: Where it runs. On a GPU the allocator's figure is taken.

    Returns:
        The rise above what was in use before; None where the system cannot tell (a CPU that is not Linux's).
    """
    device = torch.device(device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return float(torch.cuda.max_memory_allocated(device) - before) / 2**20
    if device.type != "cpu" or not _reset_peak():
        return None
    before_mb = _status_mb("VmRSS")
    call()
    return max(0.0, _status_mb("VmHWM") - before_mb)


def _reset_peak() -> bool:
    """Give freed pages back, set the highest resident size to the present one; return whether the system could."""
    with suppress(OSError, AttributeError):  # not glibc: small calls then reuse pages that are resident already
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        _RESET.write_text("5", encoding="ascii")
    except OSError:
        return False
    return _STATUS.exists()


def _status_mb(entry: str) -> float:
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{entry}:"):
            return float(line.split()[1]) / 1024
    return 0.0
