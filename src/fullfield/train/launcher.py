"""`python -m fullfield.train.launcher ARGUMENTS-OF-TORCHRUN`: torchrun, without its tracebacks over a failed process.

The process that failed has said what is wrong and what to do; fifty lines about it afterwards would hide that.
"""

from __future__ import annotations

import logging
import sys
import warnings

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Run the processes; return 0 when all ended well, and otherwise 1, or 128 + the signal that ended them."""
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
