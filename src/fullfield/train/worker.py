"""One of several processes that train a run together: `python -m fullfield.train.worker RUN [ALLOWED...]`.

`fullfield train --devices N` starts N of them through torchrun after it has made the run folder, and evaluates when
they are done. A process that is started again after another was lost finds the newest state by itself.
"""

from __future__ import annotations

import os
import signal
import sys

from rich.markup import escape

from fullfield.errors import FullfieldError
from fullfield.progress import console
from fullfield.tasks.run_folder import RunFolder
from fullfield.tasks.source import pick_device
from fullfield.train.fit import fit
from fullfield.train.launcher import die_with_parent
from fullfield.train.processes import join, leave

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Train; return the exit code."""
    die_with_parent(signal.SIGTERM)  # which saves the state, should the launcher be killed
    os.environ["FULLFIELD_LAUNCHED"] = "1"
    run = RunFolder.open(arguments[0])
    processes = join(pick_device(run.read_config().get("device", "auto")))
    console.quiet = not processes.first
    try:
        fit(run, processes, allowed=tuple(arguments[1:]))
    except FullfieldError as error:
        console.quiet = False
        console.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        leave()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
