"""Make the embedded sample `nuclei` from the images of the 2018 Data Science Bowl: label maps of cell nuclei.

Run from the repository root; it needs the images with their outlines in COCO form:

    python studies/embedded_sample/nuclei.py --source ../shared/data/nuclei_coco

Many of the images are tiles of one slide. Tiles that were cut side by side are found by their borders, which go on
into each other, and are kept in one split. Larger images are cropped, never resized, so a label map says of every pixel
what the annotators said. The choice depends on the seed alone. `SOURCE.md` and `LICENSE` beside the images are written
by hand; the counts that this script prints belong in the former.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fullfield.data.detection.objects import DetectionSample
from fullfield.data.detection.outlines import outline_to_mask
from fullfield.data.detection.read import read_detection_data

SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
IMAGES = 400
SIDE = 256  # of a crop, pixels
QUALITY = 88
# Two tiles are neighbours if their borders, less the mean over SMOOTHED pixels, correlate by more than this and neither
# has a better match. Slides that the data set cut into 2 x 2, 2 x 4 or 3 x 4 come together in such numbers; of dark
# tiles with few nuclei some come together by chance, which does no harm.
SAME_SLIDE = 0.7
SMOOTHED = 17
# Share of a crop that nuclei cover at least, unless there is none in TRIES.
COVERED, TRIES = 0.01, 20
CLASSES = ("background", "nucleus")
COLOURS = ((0, 0, 0), (255, 160, 0))
DEFAULT_OUT = Path(__file__).resolve().parents[2] / "src/fullfield/data/samples/nuclei"


@dataclass(frozen=True, eq=False)
class Tile:
    """One source image."""

    sample: DetectionSample
    pixels: NDArray[np.uint8]
    """(H, W, 3)."""

    @property
    def stratum(self) -> tuple[bool, int, int]:
        """Whether it has colours (a stained section, not fluorescence), and its height and width."""
        return bool((self.pixels != self.pixels[..., :1]).any()), *self.pixels.shape[:2]


def read_tiles(source: Path) -> list[Tile]:
    """Return all source images in the order of their ids."""
    data = read_detection_data(source)
    samples = sorted((s for part in data.splits.values() for s in part), key=lambda sample: sample.image_id)
    tiles = []
    for sample in samples:
        with Image.open(sample.path) as image:
            tiles.append(Tile(sample, np.asarray(image.convert("RGB"))))
    return tiles


def slides(tiles: list[Tile]) -> list[list[Tile]]:
    """Group tiles of one size: those with a border in common, directly or through others, are together."""
    group = list(range(len(tiles)))
    pixels = np.stack([tile.pixels for tile in tiles]).astype(np.float64)
    joined = _neighbours(pixels[:, :, -1], pixels[:, :, 0]) | _neighbours(pixels[:, -1], pixels[:, 0])
    for one, other in np.argwhere(joined):
        low, high = sorted((group[one], group[other]))
        group = [low if member == high else member for member in group]
    found = defaultdict(list)
    for tile, member in zip(tiles, group, strict=True):
        found[member].append(tile)
    return list(found.values())


def _neighbours(ends: NDArray[np.float64], beginnings: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell which of the borders (N, L, 3) goes on into which of the others (N, L, 3): (N, N)."""
    one, other = _details(ends), _details(beginnings)
    found = one @ other.T
    np.fill_diagonal(found, -1)
    best = (found == found.max(axis=0, keepdims=True)) & (found == found.max(axis=1, keepdims=True))
    return best & (found > SAME_SLIDE)


def _details(borders: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return borders (N, L, 3) in grey, less their running mean, as vectors of length 1 (N, L)."""
    grey = borders.mean(axis=2)
    padded = np.pad(grey, ((0, 0), (SMOOTHED // 2, SMOOTHED // 2)), mode="reflect")
    details = grey - np.lib.stride_tricks.sliding_window_view(padded, SMOOTHED, axis=1).mean(axis=2)
    details -= details.mean(axis=1, keepdims=True)
    return details / np.maximum(np.linalg.norm(details, axis=1, keepdims=True), 1e-9)


def choose(tiles: list[Tile], rng: random.Random) -> dict[str, list[Tile]]:
    """Divide slides among the splits and draw images, so that colours and sizes have the same shares everywhere."""
    strata = defaultdict(list)
    for tile in tiles:
        strata[tile.stratum].append(tile)
    chosen: dict[str, list[Tile]] = {split: [] for split in SHARES}
    for stratum in sorted(strata):
        wanted = {split: share * len(strata[stratum]) for split, share in SHARES.items()}
        parts: dict[str, list[Tile]] = {split: [] for split in SHARES}
        groups = slides(strata[stratum])
        rng.shuffle(groups)
        for group in sorted(groups, key=len, reverse=True):  # the large ones first, while there is room
            split = max(SHARES, key=lambda name: (wanted[name] - len(parts[name])) / SHARES[name] ** 0.5)
            parts[split] += group
        for split, part in parts.items():
            count = min(len(part), round(wanted[split] * IMAGES / len(tiles)))
            chosen[split] += rng.sample(sorted(part, key=lambda tile: tile.sample.image_id), count)
    return {split: sorted(part, key=lambda tile: tile.sample.image_id) for split, part in chosen.items()}


def crop(tile: Tile, rng: random.Random) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return a square with nuclei in it, (S, S, 3) and its labels (S, S)."""
    height, width = tile.pixels.shape[:2]
    labels = np.zeros((height, width), dtype=np.uint8)
    for outline in tile.sample.objects.masks or ():
        labels[outline_to_mask(outline, height, width)] = 1
    for _ in range(TRIES):
        top, left = rng.randint(0, height - SIDE), rng.randint(0, width - SIDE)
        window = (slice(top, top + SIDE), slice(left, left + SIDE))
        if labels[window].mean() >= COVERED:
            break
    return tile.pixels[window], labels[window]


def main() -> None:
    """Write images and label maps, and print how many there are."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--source", type=Path, default=Path("../shared/data/nuclei_coco"))
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    total_bytes = 0
    for split, tiles in choose(read_tiles(arguments.source), rng).items():
        shutil.rmtree(arguments.out / split, ignore_errors=True)
        images, masks = (arguments.out / split / name for name in ("images", "masks"))
        images.mkdir(parents=True)
        masks.mkdir()
        covered = []
        for tile in tiles:
            pixels, labels = crop(tile, rng)
            coloured, _, _ = tile.stratum
            picture = Image.fromarray(pixels if coloured else pixels[..., 0])
            name = tile.sample.path.stem
            picture.save(images / f"{name}.jpg", quality=QUALITY, optimize=True)
            label_map = Image.fromarray(labels)
            label_map.putpalette([value for colour in COLOURS for value in colour])
            label_map.save(masks / f"{name}.png", optimize=True, bits=1)
            total_bytes += sum(path.stat().st_size for path in (images / f"{name}.jpg", masks / f"{name}.png"))
            covered.append(labels.mean())
        strata = ", ".join(
            f"{count} of {width} x {height}{' coloured' if coloured else ''}"
            for (coloured, height, width), count in sorted(Counter(tile.stratum for tile in tiles).items())
        )
        print(f"{split}: {len(tiles)} images, {np.mean(covered):.1%} nuclei; {strata}")
    classes = json.dumps({"classes": CLASSES, "colours": COLOURS})
    (arguments.out / "classes.json").write_text(classes + "\n", encoding="utf-8")
    print(f"{total_bytes / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
