"""The order in which an epoch shows its images, a function of (seed, epoch) alone.

Files are shuffled freely. Images in archives are cheap to read only beside their neighbours, so for them blocks
(shards, row groups) are shuffled, and then the images of each window of several blocks: what webdataset does with a
buffer, but here every image has its position before the epoch starts, so that an epoch can be divided among
processes and resumed at any step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from fullfield.errors import ConfigError

__all__ = ["WINDOW", "epoch_order", "mix"]

WINDOW = 16
"""Blocks that are shuffled together; their images are what a process should be able to keep at hand."""


def epoch_order(
    length: int, *, seed: int, epoch: int, blocks: Sequence[range] | None = None, window: int = WINDOW
) -> list[int]:
    """Return the positions 0 to `length` - 1, each once, in the order of one epoch.

    Args:
        length: Number of images.
        seed: Another seed gives other orders.
        epoch: Another epoch gives another order.
        blocks: Ranges of positions that lie together, ascending and without gaps, see `ImageData.blocks`. None
            shuffles freely.
        window: With blocks: how many of them are shuffled into each other. At least as many as there are is a free
            shuffle; 1 leaves the images of each block together.

    Raises:
        ConfigError: The blocks do not cover the positions one after the other, or `window` is less than 1.
    """
    generator = torch.Generator().manual_seed(mix(seed, "order", epoch))
    if blocks is None:
        return torch.randperm(length, generator=generator).tolist()
    if window < 1:
        raise ConfigError(f"window is {window}; it is a number of blocks, at least 1.")
    end = 0
    for block in blocks:
        if block.start != end or block.step != 1:
            raise ConfigError(f"The block {block} does not start at {end}, where the one before it ends.")
        end = block.stop
    if end != length:
        raise ConfigError(f"The blocks end at {end}; they must cover all {length} images.")
    shuffled = torch.randperm(len(blocks), generator=generator).tolist()
    order: list[int] = []
    for start in range(0, len(blocks), window):
        together = [position for block in shuffled[start : start + window] for position in blocks[block]]
        order += [together[i] for i in torch.randperm(len(together), generator=generator).tolist()]
    return order


def mix(*parts: int | str) -> int:
    """Return 64 bits that depend on all parts, so that neighbouring seeds and epochs share nothing."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
