"""Make the embedded sample `blood_cells` from the BCCD data set: one small crop for each chosen cell.

Run from the repository root; it needs the BCCD boxes in COCO form and its images:

    python studies/embedded_sample/blood_cells.py --source ../shared/data/bccd_coco

Every crop shows the same number of source pixels, because size is what tells the cells apart. BCCD's train
and val images give the train part, its test images the test part: no source image is on both sides. The
choice depends on the seed alone. `SOURCE.md` and `LICENSE` beside the crops are written by hand; the
counts this script prints belong in the former.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

CLASSES = ("Platelets", "RBC", "WBC")
PARTS = {"train": ("train", "val"), "test": ("test",)}
# No more than the rarest class has after the dropped boxes, so that the classes are of equal size.
PER_CLASS = {"train": 220, "test": 58}
SIDE = 160  # source pixels
SAVED_SIDE = 96
QUALITY = 88
# Bounds of a whole, credibly drawn cell in source pixels: (shortest, longest) side of its box.
WHOLE = {"Platelets": (20, 80), "RBC": (70, 140), "WBC": (90, 300)}
MAX_SHIFT = 64  # of the crop against its cell, near the border of the image
# Red cells, by annotation, with a platelet on them that has no box of its own; found by looking at the crops.
UNBOXED_PLATELET = {528, 767, 3139, 4696, 4718}
DEFAULT_OUT = Path(__file__).resolve().parents[2] / "src/fullfield/data/samples/blood_cells"


@dataclass(frozen=True)
class Cell:
    """One annotated box; all lengths in source pixels."""

    annotation: int
    image: int
    file_name: str
    name: str
    left: float
    top: float
    width: float
    height: float
    image_width: int
    image_height: int

    @property
    def centre(self) -> tuple[float, float]:
        """The middle of the box: x, y."""
        return self.left + self.width / 2, self.top + self.height / 2

    @property
    def is_whole(self) -> bool:
        """Whether the box shows a whole cell: of credible size, and not halved by the image's border."""
        shortest, longest = sorted((self.width, self.height))
        low, high = WHOLE[self.name]
        if shortest < low or longest > high:
            return False
        at_border = (
            min(self.left, self.top) <= 1
            or self.left + self.width >= self.image_width - 2
            or self.top + self.height >= self.image_height - 2
        )
        # A large cell at the border still counts while three quarters of it are inside; a platelet is too
        # small to be recognised in part.
        return not at_border or (self.name != "Platelets" and shortest / longest >= 0.75)

    def crop_box(self) -> tuple[int, int, int, int]:
        """The square around the centre, shifted to stay inside the image: left, top, right, bottom."""
        x, y = self.centre
        left = round(min(max(x - SIDE / 2, 0), self.image_width - SIDE))
        top = round(min(max(y - SIDE / 2, 0), self.image_height - SIDE))
        return left, top, left + SIDE, top + SIDE


def read_cells(source: Path, splits: tuple[str, ...]) -> Iterator[list[Cell]]:
    """Yield the cells of one source image after the other, in the order of the image ids."""
    for split in splits:
        coco = json.loads((source / f"instances_{split}.json").read_text(encoding="utf-8"))
        names = {category["id"]: category["name"] for category in coco["categories"]}
        boxes = defaultdict(list)
        for annotation in coco["annotations"]:
            boxes[annotation["image_id"]].append(annotation)
        for image in sorted(coco["images"], key=lambda entry: entry["id"]):
            yield [
                Cell(
                    annotation["id"],
                    image["id"],
                    image["file_name"],
                    names[annotation["category_id"]],
                    *annotation["bbox"],
                    image["width"],
                    image["height"],
                )
                for annotation in sorted(boxes[image["id"]], key=lambda entry: entry["id"])
            ]


def is_clear(cell: Cell, neighbours: list[Cell]) -> bool:
    """Whether the crop around `cell` bears its label beyond doubt.

    Red cells are everywhere, so the rarest cell in a crop names it: no white cell may have its centre in
    the crop of another class, and no platelet in that of a red cell.
    """
    if cell.annotation in UNBOXED_PLATELET:
        return False
    left, top, right, bottom = cell.crop_box()
    x, y = cell.centre
    if max(abs(left + SIDE / 2 - x), abs(top + SIDE / 2 - y)) > MAX_SHIFT:
        return False
    inside = {
        other.name
        for other in neighbours
        if other is not cell and left <= other.centre[0] <= right and top <= other.centre[1] <= bottom
    }
    rarer = {"WBC": set(), "Platelets": {"WBC"}, "RBC": {"WBC", "Platelets"}}
    return not inside & rarer[cell.name]


def choose(source: Path, part: str, seed: int) -> dict[str, list[Cell]]:
    """Choose the cells of one part, the same number for each class."""
    rng = random.Random(f"{seed}-{part}")
    chosen: dict[str, list[Cell]] = {name: [] for name in CLASSES}
    for cells in read_cells(source, PARTS[part]):
        usable = [cell for cell in cells if cell.is_whole and is_clear(cell, cells)]
        for name in CLASSES:
            of_class = [cell for cell in usable if cell.name == name]
            # One red cell for each image: there are ten times as many as needed, and their crops overlap.
            chosen[name] += rng.sample(of_class, min(1, len(of_class))) if name == "RBC" else of_class
    return {name: rng.sample(cells, PER_CLASS[part]) for name, cells in chosen.items()}


def main() -> None:
    """Write the crops and print how many there are."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--source", type=Path, default=Path("../shared/data/bccd_coco"))
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    total_bytes = 0
    for part in PARTS:
        shutil.rmtree(arguments.out / part, ignore_errors=True)
        for name, cells in choose(arguments.source, part, arguments.seed).items():
            folder = arguments.out / part / name
            folder.mkdir(parents=True)
            for cell in cells:
                with Image.open(arguments.source / "images" / cell.file_name) as image:
                    crop = image.convert("RGB").crop(cell.crop_box())
                path = folder / f"{cell.image:05d}_{cell.annotation:05d}.jpg"
                crop.resize((SAVED_SIDE, SAVED_SIDE), Image.Resampling.LANCZOS).save(path, quality=QUALITY)
                total_bytes += path.stat().st_size
            print(f"{part}/{name}: {len(cells)} crops of {len({c.image for c in cells})} images")
    print(f"{total_bytes / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
