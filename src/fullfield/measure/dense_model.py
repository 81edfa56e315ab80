"""Detectors and segmenters as class-activation maps take them: a batch of images at the size that the net sees.

A `Segmenter` is one already. A `Detector` resizes images itself and gives boxes in the pixels of the original; here
images come at their final size, so that the units of its maps tile them and boxes are in the pixels that are drawn.
Both normalise inside: images have values from 0 to 1.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.transforms.v2 import functional

from fullfield.data.dense import DensePreprocess
from fullfield.tasks.detection.detector import Detector

__all__ = ["DetectorView", "dense_preprocess", "dense_view", "image_for_maps"]

COARSEST = 32
"""Stride of the last stage, pixels."""


class DetectorView(nn.Module):
    """A detector without its resizing, (B, C, H, W) with values from 0 to 1 -> one dictionary an image.

    The dictionaries have boxes (N, 4) in pixels, scores (N,) and labels (N,) from 0, with the graph that leads to
    them. Parts are shared with the detector and keep their names: `backbone`, `pyramid`, `head`.

    Args:
        detector: It is left as it was.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.pyramid = detector.pyramid
        self.head = detector.head
        self.in_chans = detector.in_chans
        self.preprocess = detector.preprocess

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Return what is detected in each image, in its own pixels."""
        mean, std = (images.new_tensor(v)[:, None, None] for v in (self.preprocess.mean, self.preprocess.std))
        height, width = images.shape[2:]
        x = F.pad((images - mean) / std, (0, -width % COARSEST, 0, -height % COARSEST))
        batch = ImageList(x, [(height, width)] * len(images))
        found: list[dict[str, Tensor]] = self.head(batch, self.pyramid(self.backbone(x)))[0]
        return [_with_area(one) for one in found]


def _with_area(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out boxes without an area, as `Detector` does."""
    boxes = found["boxes"].detach()
    kept = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
    return {key: found[key][kept] for key in ("boxes", "scores", "labels")}


def dense_view(model: nn.Module) -> nn.Module:
    """Return a module that takes batches of images at their final size; a detector's view, any other as it is."""
    return DetectorView(model) if isinstance(model, Detector) else model


def dense_preprocess(model: nn.Module) -> DensePreprocess | None:
    """Return how a detector or segmenter wants its images; None for a model of another kind."""
    found = getattr(model, "preprocess", None)
    return found if isinstance(found, DensePreprocess) else None


def image_for_maps(picture: Image.Image, preprocess: DensePreprocess, short_side: int | None = None) -> Tensor:
    """Return a picture as (1, C, H, W) float32, 0 to 1, of the size in which a dense model sees it.

    Both sides are rounded to a multiple of 32, at least 64, so that the units of the coarsest map tile the image; that
    changes the picture's shape by less than 16 pixels a side.

    Args:
        picture: Any mode.
        preprocess: Of the model.
        short_side: Pixels, in place of the model's own; the limit of the longer side grows or shrinks with it.
    """
    if short_side is not None:
        long = preprocess.long_side
        if long is not None and preprocess.short_side is not None:
            long = max(short_side, round(long * short_side / preprocess.short_side))
        preprocess = replace(
            preprocess, short_side=short_side, long_side=None if long is None else max(long, short_side)
        )
    mode = "L" if preprocess.channels == 1 else "RGB"
    image: Tensor = functional.pil_to_tensor(picture.convert(mode)).to(torch.float32)[None] / 255
    height, width = (max(2, round(side / COARSEST)) * COARSEST for side in preprocess.resized(*image.shape[2:]))
    return F.interpolate(image, (height, width), mode="bilinear", antialias=True).clamp(0, 1)
