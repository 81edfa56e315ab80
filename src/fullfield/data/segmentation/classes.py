"""The class file of a mask folder: names, colours, and which raw values of the label maps mean which class.

It lies in the root of the data set and is one of these; more than one is refused.

`classes.json` or `classes.yaml` (`.yml`): a list of names, or a mapping with

| key            | meaning                                                                                       |
|----------------|-----------------------------------------------------------------------------------------------|
| `classes`      | names, in the order of the labels; needed                                                     |
| `colours`      | [red, green, blue], 0 to 255, of each class; needed if label maps are RGB pictures            |
| `values`       | raw value of each class in the label maps; without it the first class is 0, the second 1, ... |
| `ignore_index` | the raw value of pixels that are not labelled; 255 unless given                               |
| `ignore`       | further raw values, or colours, that are not labelled                                         |

`classes.txt`: a name a line; blank lines are skipped.

`classes.csv`: a header row with `name` and, if wanted, `value`, `red`, `green`, `blue` (or `r`, `g`, `b`) and
`ignore`; a row with `ignore` 1, yes or true is not a class, but a value or colour that is not labelled.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fullfield.data.image_data import quote_some
from fullfield.data.segmentation.label_image import colour_number
from fullfield.data.segmentation.label_maps import Colour
from fullfield.errors import DataError, nearest

__all__ = ["CLASS_FILES", "ClassFile", "distinct_colours", "find_class_file", "free_ignore_index", "read_class_file"]

CLASS_FILES = ("classes.json", "classes.yaml", "classes.yml", "classes.txt", "classes.csv")
KEYS = ("classes", "colours", "values", "ignore_index", "ignore")
DEFAULT_IGNORE = 255
COLUMNS = {"name": "name", "value": "value", "ignore": "ignore"}
COLUMNS |= {"red": "red", "r": "red", "green": "green", "g": "green", "blue": "blue", "b": "blue"}


@dataclass(frozen=True)
class ClassFile:
    """What a class file says.

    Attributes:
        path: The file.
        classes: The names.
        colours: Of each class, or None.
        values: The raw value of each class, or None: 0, 1, ... in order.
        ignored_values: Raw values that are not labelled.
        ignored_colours: Colours that are not labelled.

    Raises:
        DataError: The parts contradict each other.
    """

    path: Path
    classes: tuple[str, ...]
    colours: tuple[Colour, ...] | None = None
    values: tuple[int, ...] | None = None
    ignored_values: tuple[int, ...] = (DEFAULT_IGNORE,)
    ignored_colours: tuple[Colour, ...] = ()

    def __post_init__(self) -> None:
        if not self.classes:
            raise DataError(f"{self.path}: names no class. Give at least one name.")
        if not all(isinstance(name, str) and name.strip() for name in self.classes):
            wrong = next(name for name in self.classes if not (isinstance(name, str) and name.strip()))
            raise DataError(f"{self.path}: {wrong!r} is not a class name; give text (in YAML, quote no and yes).")
        self._check_unique("class name", self.classes)
        for what, given in (("colours", self.colours), ("values", self.values)):
            if given is not None and len(given) != len(self.classes):
                raise DataError(f"{self.path}: has {len(given)} {what} for {len(self.classes)} classes; give one each.")
        self._check_unique("value", self.values or ())
        used = self.values if self.values is not None else tuple(range(len(self.classes)))
        for value in self.ignored_values:
            if value in used:
                raise DataError(
                    f"{self.path}: the value {value} is ignored, but is also that of the class "
                    f"{self.classes[used.index(value)]!r}. Give each class's raw value under 'values', or another "
                    "ignore_index."
                )
        for colour in self.ignored_colours:
            if self.colours is not None and colour in self.colours:
                name = self.classes[self.colours.index(colour)]
                raise DataError(f"{self.path}: the colour {colour} is ignored, but is also that of {name!r}.")

    def _check_unique(self, what: str, values: Sequence[object]) -> None:
        repeated = [value for value, count in Counter(values).items() if count > 1]
        if repeated:
            raise DataError(
                f"{self.path}: the {what} {quote_some(repeated)} is given more than once. Make each unique."
            )

    def colour_values(self, ignore_index: int) -> dict[int, int]:
        """Return `colour_number` -> label, for label maps in colours.

        Raises:
            DataError: There are no colours, or two classes share one.
        """
        if self.colours is None:
            raise DataError(f"{self.path}: the label maps are RGB pictures; add the colours of the classes.")
        self._check_unique("colour", self.colours)
        values = {colour_number(*colour): ignore_index for colour in self.ignored_colours}
        return values | {colour_number(*colour): label for label, colour in enumerate(self.colours)}

    def raw_values(self, ignore_index: int) -> dict[int, int]:
        """Return raw value -> label, for label maps of numbers."""
        used = self.values if self.values is not None else tuple(range(len(self.classes)))
        return dict.fromkeys(self.ignored_values, ignore_index) | {value: label for label, value in enumerate(used)}


def find_class_file(root: Path) -> Path | None:
    """Return the class file of a folder, or None.

    Raises:
        DataError: There is more than one.
    """
    found = [root / name for name in CLASS_FILES if (root / name).is_file()]
    if len(found) > 1:
        raise DataError(f"{root}: has {quote_some(path.name for path in found)}; leave only one class file.")
    return found[0] if found else None


def read_class_file(path: Path) -> ClassFile:
    """Read a class file; the module's docstring says what it may hold.

    Raises:
        DataError: It cannot be read, a key is unknown, or a value is impossible.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}). Save it so.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Check its permissions.") from error
    if path.suffix == ".txt":
        return ClassFile(path, tuple(line.strip() for line in text.splitlines() if line.strip()))
    if path.suffix == ".csv":
        return _from_rows(path, text)
    try:
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: is not valid {path.suffix[1:].upper()} ({error}). Mend it.") from error
    if isinstance(content, list):
        content = {"classes": content}
    if not isinstance(content, dict) or not isinstance(content.get("classes"), list):
        raise DataError(f"{path}: must be a list of names, or a mapping with the list 'classes'.")
    return _from_mapping(path, content)


def _from_mapping(path: Path, content: Mapping[str, Any]) -> ClassFile:
    content = {"colours" if key == "colors" else key: value for key, value in content.items()}
    for key in content:
        if key not in KEYS:
            raise DataError(f"{path}: unknown key {key!r}{nearest(str(key), KEYS)} The keys are {', '.join(KEYS)}.")
    lists: dict[str, list[Any]] = {}
    for key in ("colours", "values", "ignore"):
        if content.get(key) is not None:
            if not isinstance(content[key], list):
                raise DataError(f"{path}: {key!r} is {content[key]!r}; it must be a list.")
            lists[key] = content[key]
    ignored = [_whole_number(path, "ignore_index", content.get("ignore_index", DEFAULT_IGNORE))]
    ignored_colours = []
    for entry in lists.get("ignore", []):
        if isinstance(entry, list):
            ignored_colours.append(_colour(path, entry))
        else:
            ignored.append(_whole_number(path, "ignore", entry))
    colours = tuple(_colour(path, entry) for entry in lists["colours"]) if "colours" in lists else None
    values = tuple(_whole_number(path, "values", entry) for entry in lists["values"]) if "values" in lists else None
    if values is not None and "ignore_index" not in content and DEFAULT_IGNORE in values:
        ignored.remove(DEFAULT_IGNORE)  # nobody said that it is ignored: binary masks of 0 and 255 are common
    return ClassFile(path, tuple(content["classes"]), colours, values, tuple(ignored), tuple(ignored_colours))


def _from_rows(path: Path, text: str) -> ClassFile:
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    header = [COLUMNS.get(name.strip().lower(), "") for name in reader.fieldnames or ()]
    if "name" not in header:
        raise DataError(f"{path}: has no column 'name'. Its columns are {quote_some(reader.fieldnames or ())}.")
    reader.fieldnames = header
    parts: dict[str, list[Any]] = {"classes": [], "colours": [], "values": [], "ignore": []}
    for row in reader:
        given = {key: value.strip() for key, value in row.items() if key and value is not None}
        try:
            value = int(given["value"]) if given.get("value") else None
            colour = [int(given[key]) for key in ("red", "green", "blue")] if given.get("red") else None
        except (KeyError, ValueError) as error:
            raise DataError(f"{path}, line {reader.line_num}: needs whole numbers ({error}).") from error
        if given.get("ignore", "").lower() in ("1", "yes", "true"):
            parts["ignore"] += [entry for entry in (value, colour) if entry is not None]
            continue
        parts["classes"].append(given.get("name", ""))
        parts["values"] += [] if value is None else [value]
        parts["colours"] += [] if colour is None else [colour]
    return _from_mapping(path, {key: entries for key, entries in parts.items() if entries or key == "classes"})


def _whole_number(path: Path, key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{path}: {key!r} has {value!r}; expected a whole number.")
    return value


def _colour(path: Path, value: object) -> Colour:
    if (
        not isinstance(value, list)
        or len(value) != 3
        or not all(isinstance(part, int) and not isinstance(part, bool) and 0 <= part <= 255 for part in value)
    ):
        raise DataError(f"{path}: {value!r} is not a colour; expected [red, green, blue], each from 0 to 255.")
    return value[0], value[1], value[2]


def free_ignore_index(classes: int) -> int:
    """Return a label for what does not count that so many classes leave free: 255, or the largest of 16 bits."""
    return DEFAULT_IGNORE if classes <= DEFAULT_IGNORE else 2**16 - 1


def distinct_colours(count: int) -> tuple[Colour, ...]:
    """Return so many colours, all different and none black, always the same.

    They are the colour map of Pascal VOC (Everingham et al. 2010) from its entry 1 on: the bits of the number are dealt
    to red, green and blue in turn, the lowest to the brightest.
    """
    colours = []
    for number in range(1, count + 1):
        channels = [0, 0, 0]
        for bit in range(24):
            channels[bit % 3] |= (number >> bit & 1) << (7 - bit // 3)
        colours.append((channels[0], channels[1], channels[2]))
    return tuple(colours)
