"""Small models with random weights that the page's tests share; tests must not change them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fullfield.app.shelf import Shelf
from fullfield.app.upload import Upload
from fullfield.data import Preprocess
from fullfield.data.dense import DensePreprocess
from fullfield.models.registry import create_model
from fullfield.models.weights import save
from fullfield.tasks.dense_file import dense_metadata, save_dense
from fullfield.tasks.detection.detector import Detector
from fullfield.tasks.segmentation.segmenter import Segmenter
from fullfield.tasks.source import checkpoint_metadata

TINY: dict[str, Any] = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}
CLASSES = ("cat", "dog & <b>puppy</b>", "fox")


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Task -> a weights file of it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("page")
    classifier = create_model("racnn_pico", num_classes=3, **TINY)
    dense = DensePreprocess(64, 107)
    head = {"fpn_channels": 16, "convs": 1, "score_threshold": 0.0}
    detector: Any = Detector("racnn_pico", "fcos", 3, preprocess=dense, head_arguments=head, **TINY).eval()
    narrow = {"channels": 16}
    segmenter: Any = Segmenter("racnn_pico", "upernet", 3, preprocess=dense, head_arguments=narrow, **TINY).eval()
    colours = {"colours": [[200, 0, 0], [0, 200, 0], [0, 0, 200]], "ignore_index": 255}
    return {
        "classify": save(
            classifier, folder / "classify.safetensors", checkpoint_metadata(CLASSES, Preprocess(image_size=32))
        ),
        "detect": save_dense(
            detector, folder / "detect.safetensors", dense_metadata(detector, CLASSES, dense, "detect")
        ),
        "segment": save_dense(
            segmenter, folder / "segment.safetensors", dense_metadata(segmenter, CLASSES, dense, "segment", **colours)
        ),
    }


@pytest.fixture(scope="session")
def shelf(weights: dict[str, Path]) -> Shelf:
    """A classifier, a detector, a segmenter."""
    return Shelf(list(weights.values()), device="cpu")


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """Noise of 100 x 70 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="session")
def upload(photo: Image.Image, tmp_path_factory: pytest.TempPathFactory) -> Upload:
    """The photo as a visitor gives it."""
    path = tmp_path_factory.mktemp("uploads") / "0f3a.png"
    photo.save(path)
    return Upload(str(path), "my photo.png")
