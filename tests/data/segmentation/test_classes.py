from __future__ import annotations

import json
from pathlib import Path

import pytest

from fullfield.data.segmentation.classes import ClassFile, distinct_colours, find_class_file, read_class_file
from fullfield.errors import DataError

FULL = {
    "classes": ["sky", "tree"],
    "colours": [[70, 130, 180], [0, 99, 0]],
    "values": [3, 7],
    "ignore_index": 0,
    "ignore": [9, [1, 2, 3]],
}
YAML = """
classes: [sky, tree]
colors: [[70, 130, 180], [0, 99, 0]]
values: [3, 7]
ignore_index: 0
ignore: [9, [1, 2, 3]]
"""
CSV = "Name, value, r, g, b, ignore\nsky,3,70,130,180,\nvoid,0,1,2,3,yes\ntree,7,0,99,0,no\nedge,9,,,,1\n"


def write(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_json_yaml_and_csv_say_the_same(tmp_path: Path) -> None:
    expected = {0: 255, 9: 255, 3: 0, 7: 1}
    for name, content in (("classes.json", FULL), ("classes.yaml", YAML), ("classes.csv", CSV)):
        found = read_class_file(write(tmp_path, name, content))
        assert found.classes == ("sky", "tree")
        assert found.colours == ((70, 130, 180), (0, 99, 0))
        values = found.raw_values(255)
        values.pop(255, None)  # CSV cannot say an ignore_index, so it keeps the usual one
        assert values == expected
        assert found.colour_values(255) == {(1 << 16) + (2 << 8) + 3: 255, 70 * 65536 + 130 * 256 + 180: 0, 99 * 256: 1}


def test_names_alone_may_be_a_list_or_lines(tmp_path: Path) -> None:
    assert read_class_file(write(tmp_path, "classes.json", ["a", "b c"])).classes == ("a", "b c")
    found = read_class_file(write(tmp_path, "classes.txt", "\ufeffa\n\n b c \n"))
    assert found.classes == ("a", "b c")
    assert found.raw_values(255) == {0: 0, 1: 1, 255: 255}


def test_255_may_be_a_class_unless_it_is_said_to_be_ignored(tmp_path: Path) -> None:
    content = {"classes": ["no", "cell"], "values": [0, 255]}
    assert read_class_file(write(tmp_path, "classes.json", content)).raw_values(255) == {0: 0, 255: 1}
    with pytest.raises(DataError, match="value 255 is ignored, but is also that of the class 'cell'"):
        read_class_file(write(tmp_path, "classes.json", {**content, "ignore_index": 255}))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("classes.json", "{", "is not valid JSON"),
        ("classes.yaml", "a: [", "is not valid YAML"),
        ("classes.json", "3", "must be a list of names"),
        ("classes.json", {"class": []}, "must be a list of names, or a mapping with the list 'classes'"),
        ("classes.json", [], "names no class"),
        ("classes.yaml", "[yes, tree]", "True is not a class name"),
        ("classes.json", ["a", "b", "a"], "class name 'a' is given more than once"),
        ("classes.json", {"classes": ["a"], "colour": []}, "unknown key 'colour'; did you mean 'colours'"),
        ("classes.json", {"classes": ["a"], "colours": []}, "0 colours for 1 classes"),
        ("classes.json", {"classes": ["a"], "colours": [[1, 2]]}, r"\[1, 2\] is not a colour"),
        ("classes.json", {"classes": ["a"], "colours": [[1, 2, 256]]}, "is not a colour"),
        ("classes.json", {"classes": ["a", "b"], "values": [1, 1]}, "value '1' is given more than once"),
        ("classes.json", {"classes": ["a"], "values": [1.5]}, "'values' has 1.5; expected a whole number"),
        ("classes.json", {"classes": ["a"], "values": 1}, "'values' is 1; it must be a list"),
        ("classes.json", {"classes": ["a", "b"], "ignore_index": 0}, "value 0 is ignored, but is also that of .* 'a'"),
        ("classes.csv", "a,b\n1,2\n", "has no column 'name'. Its columns are 'a', 'b'"),
        ("classes.csv", "name,value\nsky,x\n", "line 2: needs whole numbers"),
        ("classes.csv", "name,value\nsky,1\ntree,\n", "1 values for 2 classes"),
        ("classes.csv", "name,value\nsky,1\n,2\n", "'' is not a class name"),
    ],
)
def test_wrong_class_file_is_refused_with_the_reason(tmp_path: Path, name: str, content: object, reason: str) -> None:
    with pytest.raises(DataError, match=rf"{name}.*{reason}"):
        read_class_file(write(tmp_path, name, content))


def test_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes("Bäume".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8"):
        read_class_file(tmp_path / "classes.txt")


def test_two_class_files_are_refused(tmp_path: Path) -> None:
    assert find_class_file(tmp_path) is None
    path = write(tmp_path, "classes.txt", "a")
    assert find_class_file(tmp_path) == path
    write(tmp_path, "classes.json", ["b"])
    with pytest.raises(DataError, match=r"'classes\.json', 'classes\.txt'; leave only one"):
        find_class_file(tmp_path)


def test_colours_are_needed_and_must_differ_where_label_maps_are_pictures() -> None:
    with pytest.raises(DataError, match="add the colours of the classes"):
        ClassFile(Path("classes.txt"), ("a", "b")).colour_values(255)
    with pytest.raises(DataError, match="more than once"):
        ClassFile(Path("c"), ("a", "b"), colours=((1, 1, 1), (1, 1, 1))).colour_values(255)


def test_distinct_colours_begin_as_the_colour_map_of_pascal_voc() -> None:
    # aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair
    assert distinct_colours(9) == (
        (128, 0, 0),
        (0, 128, 0),
        (128, 128, 0),
        (0, 0, 128),
        (128, 0, 128),
        (0, 128, 128),
        (128, 128, 128),
        (64, 0, 0),
        (192, 0, 0),
    )
    many = distinct_colours(1000)
    assert len(set(many)) == 1000
    assert (0, 0, 0) not in many
