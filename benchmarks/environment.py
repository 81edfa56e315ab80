"""What every benchmark writes beside its figures: the package's own columns, and the commit."""

import subprocess
from pathlib import Path

from fullfield.measure.environment import environment as package_environment


def environment() -> dict[str, str]:
    """Return the columns of the environment, all text."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],  # noqa: S607
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return package_environment() | {"commit": commit.stdout.strip() or "unknown"}
