"""Cityscapes (Cordts et al. 2016): the 19 classes that are evaluated, and the 34 numbers in `*_gtFine_labelIds.png`.

Names, numbers and colours are those of cityscapesscripts/helpers/labels.py (github.com/mcordts/cityscapesScripts).
"""

from __future__ import annotations

from pathlib import Path

from fullfield.data.image import IMAGE_EXTENSIONS
from fullfield.data.image_data import SPLITS
from fullfield.data.segmentation.folders import images_below
from fullfield.data.segmentation.label_maps import Colour

__all__ = ["CLASSES", "COLOURS", "IGNORE_INDEX", "LABEL_ID_VALUES", "cityscapes_files", "is_cityscapes"]

IGNORE_INDEX = 255
# name, number in labelIds, colour; the position in the list is the number in labelTrainIds
_LABELS = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
CLASSES: tuple[str, ...] = tuple(name for name, _, _ in _LABELS)
COLOURS: tuple[Colour, ...] = tuple(colour for _, _, colour in _LABELS)
LABEL_ID_VALUES: dict[int, int] = dict.fromkeys(range(34), IGNORE_INDEX) | {
    number: label for label, (_, number, _) in enumerate(_LABELS)
}


def is_cityscapes(root: Path) -> bool:
    """Tell whether a folder has the benchmark's layout: leftImg8bit and gtFine."""
    return (root / "leftImg8bit").is_dir() and (root / "gtFine").is_dir()


def cityscapes_files(root: Path, kind: str) -> dict[str, tuple[dict[str, Path], dict[str, Path]]]:
    """List images and label maps of each split, by CITY/NAME without what follows the frame's number.

    Args:
        root: The folder that holds leftImg8bit and gtFine.
        kind: "labelIds" or "labelTrainIds".

    Raises:
        DataError: A folder cannot be listed.
    """
    found = {}
    for split in SPLITS:
        folder, masks = root / "leftImg8bit" / split, root / "gtFine" / split
        if folder.is_dir():
            found[split] = (
                _by_name(folder, "_leftImg8bit"),
                _by_name(masks, f"_gtFine_{kind}") if masks.is_dir() else {},
            )
    return found


def _by_name(folder: Path, ending: str) -> dict[str, Path]:
    return {
        path.relative_to(folder).with_suffix("").as_posix().removesuffix(ending): path
        for path in images_below(folder, IMAGE_EXTENSIONS)
        if path.stem.endswith(ending)
    }
