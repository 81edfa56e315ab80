"""A predictor with the interface of `fullfield.Predictor` whose answers a test can know, and which fails on request.

Its source is a JSON file: {"task": ..., "delay_s": ...}. The width of an image makes it misbehave: see `ODD`.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from fullfield.errors import CheckpointError, ConfigError

FACTORY = "tests.deploy.serve.fake:FakePredictor"
CLASSES = ("dark", "grey", "light")
COLOURS = ((0, 0, 0), (128, 128, 128), (255, 255, 255))
ODD = {"dies": 13, "raises": 17, "not finite": 19, "refuses": 23, "hangs": 29}
SECRET = "what only the client knows"


@dataclass
class Found:
    name: str
    score: float
    box: tuple[float, float, float, float]
    mask: dict[str, Any] | None = None


class FakePredictor:
    def __init__(
        self, source: str, *, device: str = "auto", threads: int | None = None, pretrained: bool = False
    ) -> None:
        sys.stdout.write("noise on standard output, which must not disturb anything\n")
        try:
            told = json.loads(Path(source).read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{source} is damaged or missing; export it again") from error
        self.task, self.delay_s = told["task"], told.get("delay_s", 0.0)
        self.name, self.classes, self.colours = "fake net", CLASSES, COLOURS
        self.engine, self.trained = "a fake on CPU", True

    def answer(
        self,
        images: Sequence[Image.Image],
        names: Sequence[str] | None = None,
        *,
        top: int = 5,
        threshold: float = 0.3,
    ) -> list[Any]:
        time.sleep(self.delay_s)
        return [self._one(image, name, top, threshold) for image, name in zip(images, names or (), strict=True)]

    def _one(self, image: Image.Image, name: str, top: int, threshold: float) -> Any:
        odd = {width: what for what, width in ODD.items()}.get(image.width)
        if odd == "dies":
            os._exit(7)
        if odd == "raises":
            raise RuntimeError(SECRET)
        if odd == "refuses":
            raise ConfigError("the image is of a width that this net refuses")
        if odd == "hangs":
            time.sleep(3600)
        pixels = np.asarray(image.convert("L"), dtype=np.float64)
        if self.task == "classify":
            distances = np.abs(pixels.mean() - np.array([0.0, 128.0, 255.0])) / 64
            shares = np.exp(-distances) / np.exp(-distances).sum()
            if odd == "not finite":
                shares[0] = math.nan
            order = np.argsort(-shares)[:top]
            return SimpleNamespace(path=name, labels=tuple((CLASSES[i], float(shares[i])) for i in order))
        if self.task == "detect":
            box = (0.0, 0.0, float(image.width), float(image.height))
            mask = {"size": [image.height, image.width], "counts": "abc"}
            found = [Found("light", 0.9, box, mask), Found("dark", 0.2, box)]
            kept = tuple(one for one in found if one.score >= threshold)
            return SimpleNamespace(path=name, detections=kept, size=(image.height, image.width))
        labels = (pixels > 85).astype(np.uint8) + (pixels > 170)
        shares = [(CLASSES[i], float((labels == i).mean())) for i in range(3) if (labels == i).any()]
        return SimpleNamespace(path=name, labels=labels, shares=tuple(sorted(shares, key=lambda one: -one[1])))

    def close(self) -> None:
        pass
