"""A tiny data set of coloured halves, and a segmenter that tells colours apart without training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from fullfield.data.dense import DensePreprocess
from fullfield.data.segmentation.label_maps import SegmentationData, SegmentationSample

CLASSES = ("red", "green", "blue")
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


class Knows(nn.Module):
    """Logits (B, 3, H, W) that are the three channels: the brightest colour wins."""

    def __init__(self, order: tuple[int, ...] = (0, 1, 2), preprocess: DensePreprocess | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.order = order
        self.preprocess = preprocess or DensePreprocess()

    def forward(self, images: Tensor) -> Tensor:
        return images[:, list(self.order)] * self.scale


@dataclass(frozen=True)
class Opened:
    """What opening a run gives."""

    model: Any = field(default_factory=Knows)
    classes: tuple[str, ...] = CLASSES
    colours: tuple[tuple[int, int, int], ...] = COLOURS
    preprocess: DensePreprocess = field(default_factory=DensePreprocess)
    name: str = "knows"
    source: str = "runs/knows"
    trained: bool = True


def halves(height: int, width: int, left: int, right: int) -> NDArray[np.uint8]:
    """Labels of an image whose left and right half are of two classes."""
    labels = np.full((height, width), left, np.uint8)
    labels[:, width // 2 :] = right
    return labels


def write_pair(folder: Path, name: str, labels: NDArray[np.uint8], painted: NDArray[np.uint8] | None = None) -> Any:
    """Write a picture that shows `painted` (or the labels) in colours, and the label map."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "masks").mkdir(exist_ok=True)
    table = np.zeros((256, 3), np.uint8)
    table[:3] = COLOURS
    picture, mask = folder / "images" / f"{name}.png", folder / "masks" / f"{name}.png"
    Image.fromarray(table[labels if painted is None else painted]).save(picture)
    Image.fromarray(labels).save(mask)
    return SegmentationSample(picture, mask)


def write_data(folder: Path) -> SegmentationData:
    """Two pictures that are labelled as they look, and in "val" one where a quarter is labelled otherwise."""
    train = (write_pair(folder, "a", halves(20, 30, 0, 1)), write_pair(folder, "b", halves(33, 17, 2, 0)))
    wrong = halves(16, 16, 0, 1)
    wrong[:8, :8], wrong[8:, 8:] = 2, 255
    val = (write_pair(folder, "c", wrong, halves(16, 16, 0, 1)),)
    return SegmentationData(str(folder), CLASSES, COLOURS, {"train": train, "val": val})
