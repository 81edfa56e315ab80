"""Find out which form of detection annotations a user's DATA has (COCO, Pascal VOC or YOLO), and read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fullfield.data.detection.annotations import Findings, Listing
from fullfield.data.detection.checks import make_samples
from fullfield.data.detection.coco import read_coco
from fullfield.data.detection.coco_layout import coco_files
from fullfield.data.detection.objects import DetectionData, DetectionSample
from fullfield.data.detection.voc import has_voc, read_voc
from fullfield.data.detection.yolo import find_data_yaml, read_yolo
from fullfield.data.image_list import collector_paused, nearest_sibling
from fullfield.data.sample import SAMPLE_PREFIX, sample_path
from fullfield.data.split import stratified_split
from fullfield.errors import ConfigError, DataError

__all__ = ["is_detection_data", "read_detection_data"]

EXPECTED = (
    "COCO: a folder with annotations/instances_train2017.json and train2017/, or with instances_train.json and "
    "images/, or one such .json file; Pascal VOC: a folder with Annotations/*.xml and JPEGImages/, or images and .xml "
    "side by side; YOLO: a data.yaml with names, train and val, or its folder"
)
SHARED = "Images that are in two splits, so that figures on one flatter what was trained on the other"


def read_detection_data(source: str | Path, *, val_share: float = 0.15, seed: int = 0) -> DetectionData:
    """Read images and their objects from COCO, Pascal VOC or YOLO annotations; no image is decoded.

    Where there is no validation part, one is cut from the training part, by image. What is amiss is mended, skipped
    or refused as `notes` and the errors say: boxes are clipped to their image; objects without a usable box,
    annotations without an image and images without a file are skipped; an unknown class, a doubled image id and a
    broken file are refused.

    Args:
        source: A folder or file: see `read_coco`, `read_voc` and `read_yolo`; or "sample:NAME".
        val_share: The share of the training images to set aside, where no validation part is given.
        seed: Decides which images that takes.

    Raises:
        DataError: There is no such thing, it is none of these forms, or it cannot be used as it is.
        ConfigError: `val_share` is not between 0 and 1.
    """
    if not 0 < val_share < 1:
        raise ConfigError(f"The held-out share is {val_share!r}; it must lie between 0 and 1, for instance 0.15.")
    path = _path(source)
    try:
        exists = bool(str(source)) and path.exists()
        reader = _reader(path) if exists else None
    except (OSError, ValueError) as error:  # a name too long, a folder that may not be entered
        if isinstance(error, DataError):
            raise
        raise DataError(f"{source}: cannot be opened ({error}). Check the path and its permissions.") from error
    if not exists:
        raise DataError(f"{str(source)!r} does not exist{nearest_sibling(path) or '.'} Name {EXPECTED}.")
    if reader is None:
        raise DataError(f"{source}: holds no detection annotations that can be read. Name {EXPECTED}.")
    with collector_paused():
        listing = reader(path)
        splits = make_samples(str(source), listing)
    _count_shared(splits, listing.findings)
    splits, notes = _with_validation(str(source), splits, val_share, seed)
    return DetectionData(
        str(source), listing.classes, listing.category_ids, splits, (*notes, *listing.findings.sentences())
    )


def is_detection_data(path: str | Path) -> bool:
    """Say, at a glance, whether a path holds annotations that `read_detection_data` understands."""
    try:
        where = _path(path)
    except DataError:  # a sample for another task
        return False
    try:
        return bool(str(path)) and where.exists() and _reader(where) is not None
    except DataError:  # it is such data, with a defect that reading will tell
        return True
    except (OSError, ValueError):
        return False


def _path(source: str | Path) -> Path:
    name = str(source)
    if name.startswith(SAMPLE_PREFIX):
        return sample_path(name.removeprefix(SAMPLE_PREFIX), "detect")
    return Path(source)


def _reader(path: Path) -> Callable[[Path], Listing] | None:
    if find_data_yaml(path) is not None:
        return read_yolo
    if coco_files(path):
        return read_coco
    return read_voc if has_voc(path) else None


def _count_shared(splits: dict[str, tuple[DetectionSample, ...]], findings: Findings) -> None:
    """Count the files that are in a split before; the same image_id alone means nothing."""
    seen: dict[Path, str] = {}
    for split, samples in splits.items():
        for sample in samples:
            if seen.setdefault(sample.path, split) != split:
                findings.add(SHARED, f"{sample.path}, in {seen[sample.path]} and {split}")


def _with_validation(
    source: str, splits: dict[str, tuple[DetectionSample, ...]], share: float, seed: int
) -> tuple[dict[str, tuple[DetectionSample, ...]], list[str]]:
    """Return the splits with a "val" part, cut from "train" by image where there is none, and the notes on it."""
    if splits.get("val"):
        return splits, []
    train = sorted(splits["train"], key=lambda sample: sample.path.as_posix())
    kept, held_out = stratified_split([0] * len(train), share, seed)
    if not held_out:
        raise DataError(
            f"{source}: the only training image, {train[0].path}, cannot also be set aside for validation. Add images, "
            "or give a validation part."
        )
    note = (
        f"No validation part was given: {len(held_out)} of {len(train)} training images were set aside for it "
        f"({share:.0%}, seed {seed})"
    )
    test = splits.get("test", ())
    note += f"; the test part ({len(test)} images) stays held out." if test else "."
    divided = {"train": tuple(train[i] for i in kept), "val": tuple(train[i] for i in held_out)}
    return {**splits, **divided}, [note]
