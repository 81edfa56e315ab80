"""Progressive image size: small images at first, the full size at the end (EfficientNetV2, Tan & Le, 2021, section 4).

The batch is resized where the net is, after it was read at the full size. The other way, a transform in the loader that
looks up the epoch, would save some reading; but random crops are drawn in pixels, so the schedule would change what is
seen, and not only how large. Here the side is a function of the epoch and draws no random number: a run has the same
crops with and without it, and one that was continued within an epoch sees what one that was not saw.
As in FixRes (Touvron et al., 2019) the last epochs have the size at which the net is evaluated.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fullfield.errors import ConfigError

__all__ = ["resize_batch", "side_at"]


def side_at(epoch: int, epochs: int, start: int, final: int, multiple: int = 32) -> int:
    """Return the side of the images of an epoch, pixels.

    The run is divided into equal parts, as many as there are sizes. Part i of M has the side S_0 + (S_e - S_0) i / (M -
    1), Algorithm 1 of the paper, to the nearest multiple.

    Args:
        epoch: From 0.
        epochs: Of the whole run.
        start: Side at the beginning.
        final: Side of the last part; sides never exceed it.
        multiple: Sides between the two are multiples of it, so that maps are not padded.

    Raises:
        ConfigError: `start` is larger than `final`, or a number is not positive.
    """
    if min(epochs, start, multiple) < 1 or epoch < 0:
        raise ConfigError(
            f"epochs, start and multiple must be at least 1 and the epoch at least 0, got {epochs}, {start}, {multiple}"
            f" and {epoch}"
        )
    if start > final:
        raise ConfigError(f"images grow from {start} to {final} pixels: the first size must not be the larger one")
    parts = min(epochs, -(-(final - start) // multiple) + 1)
    part = min(epoch, epochs - 1) * parts // epochs
    if part == parts - 1:
        return final
    side = start + (final - start) * part / (parts - 1)
    return start if part == 0 else min(max(round(side / multiple) * multiple, start), final)


def resize_batch(images: Tensor, side: int) -> Tensor:
    """Return a batch at another size, bilinear with antialiasing.

    Args:
        images: (B, C, H, W), floating, normalised or not: the two commute.
        side: Of the result, pixels.

    Returns:
        (B, C, side, side), same dtype and device; `images` itself where it has that size, or no image at all.

    Raises:
        ConfigError: `side` is not positive.
    """
    if side < 1:
        raise ConfigError(f"the side of an image must be at least 1 pixel, got {side}")
    if not len(images) or tuple(images.shape[-2:]) == (side, side):
        return images
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
