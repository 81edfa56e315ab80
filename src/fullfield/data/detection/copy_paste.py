"""Copy-paste: objects of one picture are laid onto another.

Golnaz Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation", CVPR 2021,
section 3. Pixels are pasted with hard edges; the paper finds that blending them gains nothing. What lies under a
pasted object loses those pixels of its mask, and its box becomes that of the rest. The paper drops an object that is
wholly covered; here one of which little is left goes as well (`MAX_HIDDEN`), because a few stray pixels teach nothing.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fullfield.data.detection.geometry import AnnotatedImage, empty_masks, mask_box

__all__ = ["MAX_HIDDEN", "copy_paste"]

MAX_HIDDEN = 0.9
"""An object of which a larger share is covered is left out. Ours; the paper's is 1."""


def copy_paste(below: AnnotatedImage, above: AnnotatedImage, *, max_hidden: float = MAX_HIDDEN) -> AnnotatedImage:
    """Lay objects of one picture onto another of the same size and colour mode.

    Args:
        below: The picture that receives; masks are a uint8 tensor (N, H, W).
        above: The picture that gives, with the objects to be pasted alone; masks likewise, (M, H, W). A crowd is not
            pasted: it marks a region in which nothing is learned.
        max_hidden: Objects of `below` of which a larger share of pixels is covered are left out, in (0, 1]. A crowd
            stays as long as a pixel of it does.

    Returns:
        The picture with first the objects of `below` that remain, then the pasted ones.
    """
    masks, given = below.masks, above.masks
    assert isinstance(masks, Tensor)  # noqa: S101 - for the type checker
    assert isinstance(given, Tensor)  # noqa: S101
    taken = (~above.crowd).nonzero().flatten().tolist()
    cover = np.zeros(below.size, dtype=np.uint8)
    for index in taken:
        cover |= given[index].numpy()
    if not cover.any():
        return below
    image = Image.composite(above.image, below.image, Image.fromarray(cover * np.uint8(255)))

    # Object by object: sums and comparisons over all masks at once would take many times their memory.
    areas = [int(np.count_nonzero(mask)) for mask in masks.numpy()]
    hidden = [int(np.count_nonzero(mask & cover)) for mask in masks.numpy()]
    kept = [
        index
        for index, (area, crowd) in enumerate(zip(areas, below.crowd.tolist(), strict=True))
        if hidden[index] < area and (crowd or hidden[index] <= max_hidden * area)
    ]
    boxes = torch.cat([below.boxes[kept], above.boxes[taken]])
    merged = empty_masks(len(kept) + len(taken), below.size)
    for place, index in enumerate(kept):
        torch.mul(masks[index], torch.from_numpy(1 - cover), out=merged[place])
        if hidden[index]:
            boxes[place] = mask_box(merged[place])
    for place, index in enumerate(taken, start=len(kept)):
        merged[place] = given[index]
    return AnnotatedImage(
        image,
        boxes,
        torch.cat([below.labels[kept], above.labels[taken]]),
        torch.cat([below.crowd[kept], above.crowd[taken]]),
        merged,
    )
