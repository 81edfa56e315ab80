from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from fullfield.data import read_csv
from fullfield.errors import DataError

Make = Callable[[Iterable[str]], Path]
Write = Callable[..., Path]

IMAGES = [f"{name}{i}.png" for name in "ab" for i in range(4)]
BODY = "".join(f"{name},{name[0]}\n" for name in IMAGES)


@pytest.fixture
def write(make_images: Make) -> Write:
    """Write a list beside eight images a0.png ... b3.png."""
    root = make_images(IMAGES)

    def write_list(text: str, encoding: str = "utf-8") -> Path:
        (root / "list.csv").write_bytes(text.encode(encoding))
        return root / "list.csv"

    return write_list


def test_labels_are_sorted_and_validation_is_cut(write: Write) -> None:
    path = write("path,label\n" + BODY)
    data = read_csv(path)
    assert data.source == str(path)
    assert data.classes == ("a", "b")
    assert (data.counts("train"), data.counts("val")) == ([3, 3], [1, 1])
    assert all(s.path.name[0] == data.classes[s.label] for part in data.splits.values() for s in part)
    assert "2 of 8 training images were set aside" in data.notes[0]


def test_order_of_the_lines_does_not_matter(write: Write) -> None:
    lines = BODY.splitlines(keepends=True)
    first = read_csv(write("path,label\n" + "".join(lines)))
    assert read_csv(write("path,label\n" + "".join(reversed(lines)))) == first


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_delimiter_byte_order_mark_and_line_ends_are_recognised(
    write: Write, delimiter: str, encoding: str, newline: str
) -> None:
    text = ("path,label,price\n" + BODY.replace("\n", ",1\n")).replace(",", delimiter).replace("\n", newline)
    assert read_csv(write(text, encoding)).counts("train") == [3, 3]


def test_other_delimiters_inside_the_values_do_not_mislead(write: Write) -> None:
    text = "label;path;remark\n" + "".join(f"{name[0]};{name};one, two, three, four\n" for name in IMAGES)
    assert read_csv(write(text)).classes == ("a", "b")


@pytest.mark.parametrize("path_name", ["path", "filepath", "filename", "file", "image", " Path "])
@pytest.mark.parametrize("label_name", ["label", "class", "TARGET"])
def test_names_of_the_columns(write: Write, path_name: str, label_name: str) -> None:
    assert read_csv(write(f"id,{path_name},{label_name}\n" + "".join(f"7,{n},{n[0]}\n" for n in IMAGES))).classes


def test_splits_are_read_in_any_spelling(write: Write) -> None:
    splits = ["train", "Train", "VAL", "test"] * 2
    text = "path,label,split\n" + "".join(f"{n},{n[0]},{s}\n" for n, s in zip(IMAGES, splits, strict=True))
    data = read_csv(write(text))
    assert (data.counts("train"), data.counts("val"), data.counts("test")) == ([2, 2], [1, 1], [1, 1])
    assert data.notes == ()


def test_validation_is_cut_when_only_test_is_marked(write: Write) -> None:
    splits = ["train", "train", "train", "test"] * 2
    text = "path,label,split\n" + "".join(f"{n},{n[0]},{s}\n" for n, s in zip(IMAGES, splits, strict=True))
    data = read_csv(write(text))
    assert (data.counts("train"), data.counts("val"), data.counts("test")) == ([2, 2], [1, 1], [1, 1])


def test_absolute_paths_blank_lines_quotes_and_non_ascii_labels(write: Write, tmp_path: Path) -> None:
    lines = [f'"{tmp_path / name}" , "{"шум, 雪" if name[0] == "a" else "b"}"' for name in IMAGES]
    data = read_csv(write("\npath,label\n\n" + "\n\n".join(lines).replace(" , ", ",") + "\n , \n"))
    assert data.classes == ("b", "шум, 雪")


def test_missing_column_names_those_found_and_the_nearest(write: Write) -> None:
    path = write("path,lable\n" + BODY)
    with pytest.raises(
        DataError, match=r"no column 'label' \(or class, target\); found 'path', 'lable'; did you mean 'lable'"
    ):
        read_csv(path)


def test_missing_header_row_is_recognised(write: Write) -> None:
    with pytest.raises(DataError, match=r"no column 'path' .*found 'a0.png', 'a'\. Rename the column, or add a header"):
        read_csv(write(BODY))


def test_same_image_twice_with_one_label_is_kept_once(write: Write) -> None:
    data = read_csv(write("path,label\n" + BODY + "a0.png,a\n./a1.png,a\n"))
    assert sum(data.counts("train") + data.counts("val")) == 8
    assert data.notes[-1] == "Lines ignored because they repeat an earlier one: 2."


def test_one_image_with_two_labels_is_refused_with_both_lines(write: Write) -> None:
    with pytest.raises(DataError, match=r"a0\.png has the label 'a' in line 2 and 'b' in line 10\. Keep one"):
        read_csv(write("path,label\n" + BODY + "a0.png,b\n"))


def test_one_image_in_two_splits_is_refused(write: Write) -> None:
    with pytest.raises(DataError, match=r"a0\.png has the split 'train' in line 2 and 'test' in line 3"):
        read_csv(write("path,label,split\na0.png,a,train\na0.png,a,test\n"))


def test_missing_images_are_named_and_counted(write: Write) -> None:
    gone = "".join(f"gone{i}.png,a\n" for i in range(7)) + "x" * 300 + ".png,a\n"
    with pytest.raises(
        DataError, match=r"8 of 16 images do not exist: '.*gone0\.png'.* and 3 more \(the first in line 10\)"
    ):
        read_csv(write("path,label\n" + BODY + gone))


@pytest.mark.parametrize(
    ("line", "column"), [("a0.png,", "label"), ("a0.png", "label"), (",a", "path"), ("a0.png, ", "label")]
)
def test_empty_value_is_refused_with_its_line(write: Write, line: str, column: str) -> None:
    with pytest.raises(DataError, match=rf"list\.csv, line 3: the {column} is empty"):
        read_csv(write(f"path,label\na1.png,a\n{line}\n"))


def test_unknown_split_is_refused_with_line_and_nearest(write: Write) -> None:
    with pytest.raises(
        DataError, match=r"line 2: unknown split 'Trian'; did you mean 'train'\? Use one of train, val, test"
    ):
        read_csv(write("path,label,split\na0.png,a,Trian\n"))


def test_label_that_train_lacks_is_refused(write: Write) -> None:
    text = "path,label,split\na0.png,cat,train\na1.png,dog,train\nb0.png,cats,val\n"
    with pytest.raises(DataError, match=r"line 4: the label 'cats' occurs in val but not in train; did you mean 'cat'"):
        read_csv(write(text))


def test_list_without_training_images_is_refused(write: Write) -> None:
    with pytest.raises(DataError, match="no row belongs to the split 'train'"):
        read_csv(write("path,label,split\na0.png,a,val\n"))


def test_single_label_is_refused(write: Write) -> None:
    with pytest.raises(DataError, match="only one label, 'a'; a classifier needs at least two"):
        read_csv(write("path,label\na0.png,a\na1.png,a\n"))


@pytest.mark.parametrize(("text", "message"), [("", "is empty"), ("\n \n", "is empty"), ("path,label\n", "no images")])
def test_empty_list_is_refused(write: Write, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_csv(write(text))


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_other_encoding_is_refused_with_the_way_out(write: Write, encoding: str) -> None:
    with pytest.raises(DataError, match=r"is not UTF-8 text .*Save it as 'CSV UTF-8'"):
        read_csv(write("path,label\né.png,a\n", encoding))


def test_unclosed_quote_is_refused(write: Write) -> None:
    with pytest.raises(DataError, match="line 2: not readable as CSV"):
        read_csv(write('path,label\n"' + "x" * 200_000))


def test_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.csv: cannot be read \(No such file"):
        read_csv(tmp_path / "gone.csv")
