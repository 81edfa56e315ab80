"""The run: settings, trainer, checkpoints, report.

The room can be called: `fullfield.train(data, model=...)` trains, as `fullfield train DATA --model ...` does.
"""

import sys
from types import ModuleType
from typing import Any


class _CallableRoom(ModuleType):
    """A module that is also its main function, so that the function can bear the command's name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from fullfield.train.run import train

        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableRoom
