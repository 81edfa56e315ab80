"""`python launcher.py ARGUMENTS-OF-TORCHRUN`: torchrun, without its tracebacks over a failed process.

The process that failed has said what is wrong and what to do; fifty lines about it afterwards would hide that.
"""

from __future__ import annotations

import ctypes
import logging
import signal
import sys
import warnings
from contextlib import suppress

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

__all__ = ["die_with_parent", "main"]


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Ask the kernel to send this process a signal when its parent ends, however it ends; Linux only."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, int(number))  # PR_SET_PDEATHSIG


def main(arguments: list[str]) -> int:
    """Run the processes; return 0 when all ended well, and otherwise 1, or 128 + the signal that ended them."""
    die_with_parent(signal.SIGTERM)
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore")
    from torch.distributed import run

    try:
        run.main(arguments)
    except ChildFailedError:
        return 1
    except SignalException as received:
        return 128 + int(received.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
