"""Small images and folders of them, made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def make_images(tmp_path: Path) -> Callable[[Iterable[str]], Path]:
    """Write a tiny image at each of the given paths below `tmp_path`, and return `tmp_path`."""

    def make(names: Iterable[str]) -> Path:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 6), "teal").save(path)
        return tmp_path

    return make
