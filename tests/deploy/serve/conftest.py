"""The service's tests need its libraries, and run on asyncio."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

LIBRARIES = ("fastapi", "httpx", "prometheus_client", "python_multipart", "uvicorn")
# Where one is missing, the files that import it are not even collected.
collect_ignore_glob = [] if all(map(find_spec, LIBRARIES)) else ["test_*.py"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """The file of a fake classifier."""
    from tests.deploy.serve.helpers import model_file

    return model_file(tmp_path)
