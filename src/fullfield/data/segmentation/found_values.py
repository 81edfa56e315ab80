"""Look into some label maps of a data set: which values they hold, and whether these are numbers or colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fullfield.data.image_data import quote_some
from fullfield.data.segmentation.classes import distinct_colours, free_ignore_index
from fullfield.data.segmentation.label_image import LabelCode, colour_number, read_label_map, read_raw_label_map
from fullfield.data.segmentation.label_maps import Colour, SegmentationSample
from fullfield.errors import DataError, ImageError

__all__ = ["LookedInto", "check_code", "classes_found", "in_colours", "look_into"]

SAMPLED = 100  # a second or two
MOST_VALUES = 256  # more are hardly classes, but numbers of instances or depths
UNLABELLED = 255  # by custom, in label maps of 8 bits

Classes = tuple[tuple[str, ...], tuple[Colour, ...], dict[int, int], str]


class LookedInto(NamedTuple):
    """What one label map holds.

    Attributes:
        path: The file.
        values: The raw values that occur; of an RGB picture that is not just grey, `colour_number` of its colours.
        coloured: Whether it is such a picture.
    """

    path: Path
    values: frozenset[int]
    coloured: bool


def look_into(samples: Sequence[SegmentationSample]) -> tuple[list[LookedInto], list[str]]:
    """Look into at most 100 label maps, evenly from the first to the last.

    Args:
        samples: At least one.

    Returns:
        What those hold that can be read, and a sentence on those that cannot.

    Raises:
        DataError: Not one can be read; the reason of the first is given.
    """
    step = max(len(samples) / SAMPLED, 1)
    chosen = [samples[int(i * step)].mask for i in range(min(SAMPLED, len(samples)))]
    found, errors = [], []
    for path in chosen:
        try:
            raw = read_raw_label_map(path)
        except ImageError as error:
            errors.append(error)
            continue
        if raw.ndim == 3:
            colours = np.unique(raw[..., 0] << 16 | raw[..., 1] << 8 | raw[..., 2])
            found.append(LookedInto(path, frozenset(colours.tolist()), True))
        else:
            small = raw.min() >= 0 and raw.max() < 2**16
            values = np.flatnonzero(np.bincount(raw.ravel())) if small else np.unique(raw)
            found.append(LookedInto(path, frozenset(values.tolist()), False))
    if not found:
        raise DataError(f"None of {len(chosen)} label maps can be read; the first: {errors[0]}")
    return found, _notes(errors, len(chosen))


def classes_found(source: str, found: Sequence[LookedInto]) -> Classes:
    """Make a class of each value in the label maps, for want of a class file; 255 is taken as not labelled.

    Only where label maps hold nothing but 0 and 255, as binary masks do, is 255 a class.

    Returns:
        Names ("class 7" for the value 7), colours, raw value -> label, and a sentence to tell the user.

    Raises:
        DataError: The label maps are in colours, or hold too many values or a single one.
    """
    remedy = "Add a class file: classes.json with the names under 'classes'"
    coloured = next((one for one in found if one.coloured), None)
    if coloured is not None:
        some = sorted(coloured.values)
        colours = quote_some(((number >> 16, number >> 8 & 255, number & 255) for number in some), 3)
        raise DataError(
            f"{source}: label maps are RGB pictures ({coloured.path.name!r} holds the colours {colours}), and which "
            f"class has which colour is not said. {remedy} and their [red, green, blue] under 'colours'."
        )
    values = frozenset[int]().union(*(one.values for one in found))
    classes = sorted(values if values == {0, UNLABELLED} else values - {UNLABELLED})
    if len(classes) > MOST_VALUES:
        raise DataError(
            f"{source}: {len(found)} label maps hold {len(classes)} values, from {classes[0]} to {classes[-1]}; these "
            f"are hardly classes. {remedy} and the values of them under 'values'."
        )
    if len(classes) < 2:
        raise DataError(f"{source}: {len(found)} label maps hold the values {sorted(values)}; two classes are needed.")
    ignore_index = free_ignore_index(len(classes))
    meanings = {value: label for label, value in enumerate(classes)}
    ignored = UNLABELLED not in meanings
    note = f"No class file: the {len(classes)} classes are the values found in {len(found)} label maps"
    note += f"; {UNLABELLED} is taken as not labelled." if ignored else "."
    names = tuple(f"class {value}" for value in classes)
    return names, distinct_colours(len(names)), {**({UNLABELLED: ignore_index} if ignored else {}), **meanings}, note


def in_colours(found: Sequence[LookedInto], classes: int, colours: Sequence[Colour]) -> bool:
    """Tell whether label maps hold the colours of the classes and not their numbers, where no values are given.

    A grey picture may be either: black and white are colours of two classes, 0 and 1 their numbers.
    """
    if any(one.coloured for one in found):
        return True
    values = frozenset[int]().union(*(one.values for one in found))
    of_classes = {colour_number(*colour) for colour in colours}
    return not values <= set(range(classes)) and {colour_number(value, value, value) for value in values} <= of_classes


def check_code(source: str, found: Sequence[LookedInto], code: LabelCode) -> list[str]:
    """Return a sentence on the label maps that hold what `code` does not know, if there are any.

    Raises:
        DataError: They are more than half; or there are two classes of which one does not occur, but 255 does.
    """
    known = code.known().keys()
    errors = []
    for one in found:
        # the values of a palette image are indices, which may stand for known colours
        if one.coloured != code.by_colour or not one.values <= known:
            try:
                read_label_map(one.path, code)
            except ImageError as error:
                errors.append(error)
    if 2 * len(errors) > len(found):
        raise DataError(
            f"{source}: {len(errors)} of {len(found)} label maps do not fit the classes; the first: {errors[0]}"
        )
    values = frozenset[int]().union(*(one.values for one in found))
    if code.classes == 2 and values == {0, UNLABELLED} and code.known().get(UNLABELLED) == code.ignore_index:
        raise DataError(
            f"{source}: {len(found)} label maps hold 0 and {UNLABELLED} alone, and {UNLABELLED} is not labelled. If it "
            f"is the second class, give 'values': [0, {UNLABELLED}] in the class file."
        )
    return _notes(errors, len(found))


def _notes(errors: Sequence[ImageError], looked: int) -> list[str]:
    return (
        [f"{len(errors)} of {looked} label maps looked into cannot be used; the first: {errors[0]}"] if errors else []
    )
