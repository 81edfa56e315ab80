"""Read a segmentation data set: folders of images and label maps, ADE20K or Cityscapes.

`folders.py` says how folders may be arranged and `classes.py` what a class file holds; ADE20K and Cityscapes are known
by their own arrangement and need none. Without a class file the classes are the values found in the label maps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

from fullfield.data.sample import SAMPLE_PREFIX, sample_path
from fullfield.data.segmentation import ade20k, cityscapes
from fullfield.data.segmentation.classes import distinct_colours, find_class_file, free_ignore_index, read_class_file
from fullfield.data.segmentation.folders import find_folders, folder_files, pair_files
from fullfield.data.segmentation.found_values import check_code, classes_found, in_colours, look_into
from fullfield.data.segmentation.label_image import LabelCode, read_label_map
from fullfield.data.segmentation.label_maps import SegmentationData, SegmentationSample
from fullfield.data.split import stratified_split
from fullfield.errors import DataError, ImageError

__all__ = ["is_segmentation_data", "read_segmentation_data"]

LAYOUT = (
    "Put images in 'images' and label maps of the same names in 'masks', both perhaps inside 'train', 'val' and "
    "'test'; or name a folder of ADE20K or Cityscapes."
)

Splits = dict[str, tuple[SegmentationSample, ...]]


def is_segmentation_data(source: str | Path) -> bool:
    """Tell whether `read_segmentation_data` would read this, by its folders alone; never raises."""
    try:
        root = _root(source)
        if not root.is_dir():
            return False
        return cityscapes.is_cityscapes(root) or bool(find_folders(root))
    except (DataError, OSError, ValueError):
        return False


def read_segmentation_data(source: str | Path, *, val_share: float = 0.15, seed: int = 0) -> SegmentationData:
    """Read the lists of images and label maps, and what the values of the label maps mean.

    No picture is opened. Of the label maps up to 100 are, to see whether they hold numbers or colours.

    Args:
        source: A folder in one of the arrangements that the module's docstring names, or "sample:NAME".
        val_share: The share of the training images to cut for validation, where the data have no validation part.
        seed: Decides which images that cut takes.

    Raises:
        DataError: There is no such folder; it is arranged otherwise; label maps are missing for more than half of the
            images, are lossy or of colours that no class file tells; or the class file is wrong.
        ConfigError: `val_share` is not between 0 and 1.
    """
    root = _root(source)
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(f"{str(source)!r} {what}; expected a folder of images and label maps. {LAYOUT}")
    if cityscapes.is_cityscapes(root):
        data = _read_cityscapes(root, val_share, seed)
    elif ade20k.is_ade20k(root) and find_class_file(root) is None:
        data = _read_ade20k(root, val_share, seed)
    else:
        data = _read_folders(root, val_share, seed)
    return replace(data, source=str(source))


def _root(source: str | Path) -> Path:
    name = str(source)
    return sample_path(name.removeprefix(SAMPLE_PREFIX), "segment") if name.startswith(SAMPLE_PREFIX) else Path(source)


def _read_folders(root: Path, val_share: float, seed: int) -> SegmentationData:
    folders = find_folders(root)
    if not folders:
        raise DataError(f"{root}: no folders of images and label maps were recognised. {LAYOUT}")
    path = find_class_file(root)
    class_file = read_class_file(path) if path is not None else None
    files = {split: folder_files(images, masks) for split, (images, masks) in folders.items()}
    splits, notes = _pair(root, files, val_share, seed)
    found, unreadable = look_into([sample for samples in splits.values() for sample in samples])
    notes += unreadable
    if class_file is None:
        names, colours, values, note = classes_found(str(root), found)
        ignore_index = free_ignore_index(len(names))
        return SegmentationData(str(root), names, colours, splits, values, False, ignore_index, (*notes, note))
    names = class_file.classes
    ignore_index = free_ignore_index(len(names))
    by_colour = class_file.values is None and in_colours(found, len(names), class_file.colours or ())
    values = class_file.colour_values(ignore_index) if by_colour else class_file.raw_values(ignore_index)
    notes += check_code(str(root), found, LabelCode(len(names), ignore_index, values, by_colour))
    colours = class_file.colours or distinct_colours(len(names))
    return SegmentationData(str(root), names, colours, splits, values, by_colour, ignore_index, tuple(notes))


def _read_ade20k(root: Path, val_share: float, seed: int) -> SegmentationData:
    files = {
        split: folder_files(root / "images" / name, root / "annotations" / name)
        for split, name in (("train", "training"), ("val", "validation"))
        if (root / "images" / name).is_dir()
    }
    splits, notes = _pair(root, files, val_share, seed)
    notes.append("Read as ADE20K, by its folders 'training'; if it is other data, add a class file.")
    colours = distinct_colours(len(ade20k.CLASSES))
    return SegmentationData(
        str(root), ade20k.CLASSES, colours, splits, ade20k.VALUES, False, ade20k.IGNORE_INDEX, tuple(notes)
    )


def _read_cityscapes(root: Path, val_share: float, seed: int) -> SegmentationData:
    kind = "labelIds"
    files = cityscapes.cityscapes_files(root, kind)
    if not files.get("train", ({}, {}))[1]:
        kind = "labelTrainIds"
        files = cityscapes.cityscapes_files(root, kind)
    if not files.get("train", ({}, {}))[1]:
        raise DataError(
            f"{root}: gtFine/train holds no label maps *_gtFine_labelIds.png or *_gtFine_labelTrainIds.png. Unpack "
            "gtFine_trainvaltest.zip here."
        )
    classes = len(cityscapes.CLASSES)
    values = cityscapes.LABEL_ID_VALUES if kind == "labelIds" else None
    if "test" in files and _is_unlabelled(
        files["test"][1].values(), LabelCode(classes, cityscapes.IGNORE_INDEX, values)
    ):
        files["test"] = (files["test"][0], {})
    splits, notes = _pair(root, files, val_share, seed)
    return SegmentationData(
        str(root), cityscapes.CLASSES, cityscapes.COLOURS, splits, values, False, cityscapes.IGNORE_INDEX, tuple(notes)
    )


def _is_unlabelled(masks: Iterable[Path], code: LabelCode) -> bool:
    """Tell whether the first label maps hold no class at all, as those published for the test part do."""
    try:
        return all((read_label_map(path, code) == code.ignore_index).all() for path in islice(masks, 3))
    except ImageError:
        return False


def _pair(
    root: Path, files: Mapping[str, tuple[dict[str, Path], dict[str, Path]]], val_share: float, seed: int
) -> tuple[Splits, list[str]]:
    """Pair images and label maps of every split, and cut a validation part from the training part if there is none.

    Raises:
        DataError: There is nothing to train on, or too little to cut; or see `pair_files`.
        ConfigError: `val_share` is not between 0 and 1.
    """
    splits: Splits = {}
    notes: list[str] = []
    for split, (images, masks) in files.items():
        if split != "train" and images and not masks:
            notes.append(f"The {split} part ({len(images)} images) has no labels and was left out.")
            continue
        samples, skipped = pair_files(str(root), split, images, masks)
        notes += skipped
        if samples:
            splits[split] = samples
    if "train" not in splits:
        raise DataError(f"{root}: the train part has no image with a label map. {LAYOUT}")
    if "val" not in splits:
        train = splits["train"]
        kept, held_out = stratified_split([0] * len(train), val_share, seed)
        if not held_out:
            raise DataError(f"{root}: has one labelled image, so none can be set aside for validation. Add images.")
        notes.append(
            f"No validation part was given: {len(held_out)} of {len(train)} training images were set aside for it "
            f"({val_share:.0%}, seed {seed})."
        )
        splits |= {"train": tuple(train[i] for i in kept), "val": tuple(train[i] for i in held_out)}
    return splits, notes
