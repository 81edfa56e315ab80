"""The photographs and the finished run that these tests share, and validation that always gets better."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fullfield.train.module import TrainModule
from tests.images import finished, photos

__all__ = ["better_every_epoch", "finished", "photos"]


@pytest.fixture
def better_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each validation count as better than the one before, so that the best weights are saved in every epoch."""
    count = TrainModule.validation_result
    monkeypatch.setattr(
        TrainModule, "validation_result", lambda self: replace(count(self), top1=(self.current_epoch + 1) / 10)
    )
