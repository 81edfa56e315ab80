"""Serve in a process of its own, as `fullfield serve` does: `python service_process.py SETTINGS`, JSON.

Prints the address when the service is ready. Started without PyTorch, which nothing here needs and which takes seconds.
"""

from __future__ import annotations

import json
import sys

if __name__ == "__main__":
    sys.modules["torch"] = None  # type: ignore[assignment]
    from fullfield.deploy.serve.run import serve
    from fullfield.deploy.serve.settings import ServedModel, ServeSettings

    told = json.loads(sys.argv[1])
    models = tuple(ServedModel(*model) for model in told.pop("models"))
    keys = tuple(told.pop("keys", ()))
    say = lambda address, _: (sys.stdout.write(f"{address}\n"), sys.stdout.flush())  # noqa: E731
    serve(ServeSettings(models, keys=keys, **told), ready=say)
