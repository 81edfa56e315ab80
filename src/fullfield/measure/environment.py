"""What a measurement needs beside its figures to be repeated: device, threads, versions and date."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path

import torch

from fullfield.version import __version__

__all__ = ["environment"]


def environment(device: str = "cpu") -> dict[str, str]:
    """Return the columns of the environment, all text.

    Args:
        device: Where the measurement runs: "cpu", "cuda", "cuda:1", "mps".
    """
    cuda = torch.device(device).type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else _processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "fullfield": __version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    """Return the processor's name; the standard library knows it on macOS and Windows only."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
