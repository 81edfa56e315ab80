"""What evaluating and predicting need of a segmenter that was opened."""

from __future__ import annotations

from typing import Protocol

from fullfield.data.dense import DensePreprocess
from fullfield.data.segmentation.label_maps import Colour
from fullfield.tasks.segmentation.segmenter import Segmenter

__all__ = ["OpenedSegmenter"]


class OpenedSegmenter(Protocol):
    """A segmenter ready to be used, in eval mode, with what its checkpoint says of it."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    @property
    def model(self) -> Segmenter:
        """On the device that is to be used."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of the logits."""

    @property
    def colours(self) -> tuple[Colour, ...]:
        """Red, green and blue of each class, 0 to 255."""

    @property
    def preprocess(self) -> DensePreprocess:
        """How images are resized and normalised."""

    @property
    def trained(self) -> bool:
        """Whether the weights were trained by anyone."""

    @property
    def source(self) -> str:
        """What the user named."""
