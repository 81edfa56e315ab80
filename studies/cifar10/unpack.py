"""The images of the study as a folder: a stratified part of CIFAR-10's training images, and all its test images.

The source is train.npz and test.npz of ../shared/data/cifar10, with JPEG files one after another in `data` (uint8),
where each begins and ends in `offsets` (int64, one more than images), `labels` (0 to 9) and `classes` (their names).
The files are JPEGs that have lost detail (median PSNR 30.5 dB against the original pixels), so that no figure made
with them can be compared with published ones. Their order is random already; the first of each class are taken.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

__all__ = ["TRAIN_PER_CLASS", "VAL_PER_CLASS", "unpack"]

TRAIN_PER_CLASS = 1000
VAL_PER_CLASS = 100


def unpack(source: Path, folder: Path, train_per_class: int = TRAIN_PER_CLASS) -> Path:
    """Write the images to `folder/{train,val,test}/CLASS/NUMBER.jpg`, unless they are there; return `folder`.

    Args:
        source: Where train.npz and test.npz lie.
        folder: Appears whole or not at all.
        train_per_class: Training images a class; the next `VAL_PER_CLASS` are for validation.

    Raises:
        FileNotFoundError: The source is not there.
        ValueError: A class has too few images.
    """
    if folder.exists():
        return folder
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    seen: Counter[str] = Counter()
    for number, (name, jpeg) in enumerate(jpegs(source / "train.npz")):
        split = "train" if seen[name] < train_per_class else "val"
        if seen[name] < train_per_class + VAL_PER_CLASS:
            write(partial / split / name / f"{number:05d}.jpg", jpeg)
            seen[name] += 1
    for number, (name, jpeg) in enumerate(jpegs(source / "test.npz")):
        write(partial / "test" / name / f"{number:05d}.jpg", jpeg)
    short = {name: count for name, count in seen.items() if count < train_per_class + VAL_PER_CLASS}
    if short:
        raise ValueError(f"{source} has too few images of {short}; {train_per_class + VAL_PER_CLASS} are needed")
    partial.rename(folder)
    return folder


def jpegs(file: Path) -> Iterator[tuple[str, bytes]]:
    """Yield class name and JPEG bytes of every image, in the order of the file."""
    with np.load(file) as arrays:
        data, offsets, labels, classes = (arrays[key] for key in ("data", "offsets", "labels", "classes"))
    for label, start, end in zip(labels, offsets[:-1], offsets[1:], strict=True):
        yield str(classes[label]), data[start:end].tobytes()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
