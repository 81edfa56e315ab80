"""Cut a held-out part from a list of labels, the same share of every class, the same on every machine.

The order of the labels decides which image goes where, so callers sort their images first. Only
`random.Random.random` is used, whose sequence Python guarantees across versions; its `shuffle` is not.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from fullfield.data.image_data import Sample
from fullfield.errors import ConfigError, DataError

__all__ = ["stratified_split", "with_validation"]


def stratified_split(labels: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Divide the positions of `labels` into those that stay and those that are held out.

    Each class is divided on its own, with its own stream of random numbers: images added to one class do
    not move those of another. A class of at least two images has at least one on each side; the only image
    of a class stays.

    Args:
        labels: The class of each image.
        share: The part of each class to hold out, between 0 and 1.
        seed: Another seed gives another division.

    Returns:
        Two ascending lists of positions, which together hold each position once: (kept, held out).

    Raises:
        ConfigError: `share` is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ConfigError(f"The held-out share is {share!r}; it must lie between 0 and 1, for instance 0.15.")
    positions = defaultdict(list)
    for position, label in enumerate(labels):
        positions[label].append(position)
    held_out: set[int] = set()
    for label, of_class in positions.items():
        if len(of_class) == 1:
            continue
        rng = random.Random(f"{seed}/{label}")  # a string is hashed with SHA-512, whatever PYTHONHASHSEED is
        shuffled = sorted(of_class, key=lambda _: rng.random())
        held_out.update(shuffled[: min(max(round(len(of_class) * share), 1), len(of_class) - 1)])
    kept = [position for position in range(len(labels)) if position not in held_out]
    return kept, sorted(held_out)


def with_validation(
    splits: dict[str, tuple[Sample, ...]], share: float, seed: int
) -> tuple[dict[str, tuple[Sample, ...]], list[str]]:
    """Return `splits` with a "val" part, cut from "train" where there is none, and the notes on it.

    Args:
        splits: Samples by split, sorted; "train" must be there.
        share: As in `stratified_split`.
        seed: As in `stratified_split`.

    Raises:
        ConfigError: `share` is not between 0 and 1.
        DataError: No class has an image to spare.
    """
    if splits.get("val"):
        return splits, []
    train = splits["train"]
    kept, held_out = stratified_split([sample.label for sample in train], share, seed)
    if not held_out:
        raise DataError(
            f"No class has more than one training image ({len(train)} in all, the first is {train[0].path}), so "
            "none can be set aside for validation. Add images, or give a validation part."
        )
    test = splits.get("test", ())
    note = (
        f"No validation part was given: {len(held_out)} of {len(train)} training images were set aside for it "
        f"(stratified, {share:.0%}, seed {seed})"
    )
    note += f"; the test part ({len(test)} images) stays held out." if test else "."
    divided = {"train": tuple(train[i] for i in kept), "val": tuple(train[i] for i in held_out)}
    return {**splits, **divided}, [note]
