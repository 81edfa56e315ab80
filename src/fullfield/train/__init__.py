"""The run: settings, trainer, checkpoints, report.

The room can be called: `fullfield.train(data, model=...)` trains, as `fullfield train DATA --model ...` does.
"""

from fullfield.callable_room import make_callable

make_callable(__name__, "fullfield.train.run:train", extra="train")
