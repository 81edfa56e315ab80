"""ADE20K's scene parsing benchmark (Zhou et al. 2017): 150 classes, and label maps of 0 (not labelled) to 150.

The names are the first of each entry's synonyms in objectInfo150.txt of the benchmark's development kit
(github.com/CSAILVision/sceneparsing).
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["CLASSES", "IGNORE_INDEX", "VALUES", "is_ade20k"]

IGNORE_INDEX = 255
VALUES = {0: IGNORE_INDEX} | {raw: raw - 1 for raw in range(1, 151)}

_NAMES = """
    wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
    table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair,
    seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers,
    counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table,
    pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench,
    countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel,
    light, truck, tower, chandelier, awning, streetlight, booth, television, airplane, dirt track, apparel, pole, land,
    bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer,
    plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step,
    tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase,
    traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock,
    flag
"""
CLASSES: tuple[str, ...] = tuple(name.strip() for name in _NAMES.split(","))


def is_ade20k(root: Path) -> bool:
    """Tell whether a folder has the benchmark's layout: images/training and annotations/training."""
    return (root / "images" / "training").is_dir() and (root / "annotations" / "training").is_dir()
