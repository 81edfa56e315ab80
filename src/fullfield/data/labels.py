"""From the labels as archives hold them, numbers or names, to the classes and samples of a data set.

Shards, Parquet files and saved Hugging Face data sets all come down to this: for each split a list of images with a
raw label, and perhaps the names of the classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fullfield.data.image_data import SPLITS, ImageData, Place, Sample, quote_some
from fullfield.data.split import with_validation
from fullfield.errors import DataError, nearest

__all__ = ["Found", "labelled_data"]


class Found(NamedTuple):
    """An image in an archive, with its label as it stands there; None if it stands for "unknown"."""

    path: Path
    label: int | str | None
    place: Place


def labelled_data(
    source: str,
    found: Mapping[str, Sequence[Found]],
    names: Sequence[str] | None,
    *,
    notes: Sequence[str],
    val_share: float,
    seed: int,
) -> ImageData:
    """Turn raw labels into positions among the classes.

    With `names` these are the classes, and a number is a position in them. Without, the classes are the labels of
    the training part, sorted: by value if all are numbers, otherwise as text.

    Args:
        source: What the user named.
        found: Images by split, in the order in which they lie.
        names: The names of the classes, where the archive tells them.
        notes: What the reader has to say.
        val_share: The share of each class to cut for validation, where no part "val" is given.
        seed: Decides which images that cut takes.

    Raises:
        DataError: There is no training image, a label is missing or unknown, or there are fewer than two classes.
        ConfigError: `val_share` is not between 0 and 1.
    """
    notes = list(notes)
    parts = {split: found[split] for split in SPLITS if found.get(split)}
    # published test parts often have their labels withheld, all of them
    for split in ("val", "test"):
        if split in parts and all(_is_unknown(image.label) for image in parts[split]):
            notes.append(f"The {split} part ({len(parts.pop(split))} images) has no labels and was left out.")
    if "train" not in parts:
        raise DataError(f"{source}: holds no images to train on. Name data with a part 'train', or without parts.")
    unknown = [image for part in parts.values() for image in part if _is_unknown(image.label)]
    if unknown:
        raise DataError(
            f"{source}: {len(unknown)} image{'s' * (len(unknown) > 1)} without a label: "
            f"{quote_some(image.path for image in unknown)}. Label them or take them out."
        )
    numeric = all(isinstance(image.label, int) for part in parts.values() for image in part)
    classes, positions = _classes(source, parts["train"], names, numeric)
    if len(classes) < 2:
        raise DataError(f"{source}: has only one class, {classes[0]!r}; a classifier needs at least two.")
    splits: dict[str, tuple[Sample, ...]] = {}
    for split, part in parts.items():
        samples = []
        for path, raw, place in part:
            label = positions.get(str(raw))
            if label is None:
                problem = _describe_unknown(raw, split, positions, names is not None, numeric)
                raise DataError(f"{path}: {problem}")
            samples.append(Sample(path, label, place))
        splits[split] = tuple(samples)
    unused = set(range(len(classes))) - {sample.label for sample in splits["train"]}
    if unused:
        notes.append(f"Classes without a training image: {quote_some(classes[label] for label in sorted(unused))}.")
    splits, split_notes = with_validation(splits, val_share, seed)
    return ImageData(source, classes, splits, tuple(split_notes + notes))


def _is_unknown(label: int | str | None) -> bool:
    return label is None or label == -1 or label == ""


def _classes(
    source: str, train: Sequence[Found], names: Sequence[str] | None, numeric: bool
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the names of the classes, and the position that each raw label means."""
    if names is None:
        labels = {image.label for image in train}
        values = sorted(map(str, labels), key=int if numeric else None)
        return tuple(values), {value: position for position, value in enumerate(values)}
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise DataError(f"{source}: the class names repeat {quote_some(repeated)}. Make each one unique.")
    keys = map(str, range(len(names))) if numeric else names
    return tuple(names), {key: position for position, key in enumerate(keys)}


def _describe_unknown(raw: int | str | None, split: str, known: Collection[str], named: bool, numeric: bool) -> str:
    hint = nearest(str(raw), known) or "."
    if not named:
        return f"the label {raw!r} occurs in {split} but not in train{hint} Rename it, or add training images of it."
    if numeric:
        return f"the label is {raw}, but the {len(known)} classes count from 0 to {len(known) - 1}. Mend one of them."
    return f"the label {raw!r} is not among the {len(known)} class names{hint} Rename it, or add the class."
