"""Fixtures for every test: a fixed seed, one thread a worker under xdist, and where the real images lie.

Nothing here may import fullfield: a broken package must fail its own tests, not the collection of all.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

_REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    # Each xdist worker would otherwise start a thread per core, and the workers starve each other.
    if os.environ.get("PYTEST_XDIST_WORKER"):
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the repository; tests that need it are skipped without it."""
    folder = _REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the data sets in ../shared/data beside the repository, which is not there")
    return folder
