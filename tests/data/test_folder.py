from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from fullfield.data import ImageData, read_folder
from fullfield.errors import DataError

Make = Callable[[Iterable[str]], Path]


def names(data: ImageData, root: Path, split: str) -> list[tuple[str, str]]:
    return [(s.path.relative_to(root).as_posix(), data.classes[s.label]) for s in data.splits[split]]


def class_images(*classes: str, count: int = 4) -> list[str]:
    return [f"{name}/{i}.png" for name in classes for i in range(count)]


def test_folders_are_classes_in_sorted_order(make_images: Make) -> None:
    root = make_images(class_images("zebra", "Ant", "cat"))
    data = read_folder(root)
    assert data.classes == ("Ant", "cat", "zebra")
    assert data.source == str(root)
    assert sorted(data.splits) == ["train", "val"]
    for split in data.splits:
        assert all(path.split("/")[0] == label for path, label in names(data, root, split))
    assert data.counts("train") == [3, 3, 3]
    assert data.counts("val") == [1, 1, 1]
    assert "3 of 12 training images were set aside" in data.notes[0]


def test_images_at_any_depth_and_in_any_case_belong_to_the_class(make_images: Make) -> None:
    root = make_images(["a/1.png", "a/x/2.PNG", "a/x/y/z/3.JpG", "b/1.webp", "b/train/2.tiff"])
    data = read_folder(root)
    found = dict(names(data, root, "train") + names(data, root, "val"))
    assert found == {"a/1.png": "a", "a/x/2.PNG": "a", "a/x/y/z/3.JpG": "a", "b/1.webp": "b", "b/train/2.tiff": "b"}


def test_split_does_not_depend_on_the_order_of_the_file_system(
    make_images: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_images(class_images("a", "b", count=20))
    expected = read_folder(root, seed=3)
    scandir = os.scandir

    class Reversed:
        def __init__(self, path: Path) -> None:
            with scandir(path) as scan:
                self.entries = list(scan)[::-1]

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Reversed)
    assert read_folder(root, seed=3) == expected
    assert read_folder(root, seed=4) != expected


@pytest.mark.parametrize("val", ["val", "valid", "Validation", "VAL"])
def test_given_splits_are_used_as_they_are(make_images: Make, val: str) -> None:
    root = make_images(
        class_images("Train/a", "Train/b") + class_images(f"{val}/a", f"{val}/b", count=2) + ["TEST/b/1.png"]
    )
    data = read_folder(root)
    assert data.counts("train") == [4, 4]
    assert data.counts("val") == [2, 2]
    assert names(data, root, "test") == [("TEST/b/1.png", "b")]
    assert data.notes == ("The test part has no folder for 'a'.",)


def test_validation_is_cut_from_train_when_only_test_is_given(make_images: Make) -> None:
    root = make_images(class_images("train/a", "train/b", count=10) + class_images("test/a", "test/b"))
    data = read_folder(root, val_share=0.2)
    assert (data.counts("train"), data.counts("val"), data.counts("test")) == ([8, 8], [2, 2], [4, 4])
    assert all(path.startswith("train/") for path, _ in names(data, root, "val"))
    assert "the test part (8 images) stays held out" in data.notes[0]


def test_a_folder_train_that_holds_images_is_a_class_of_trains(make_images: Make) -> None:
    root = make_images(class_images("bus", "car", "train"))
    assert read_folder(root).classes == ("bus", "car", "train")


def test_test_folder_without_class_folders_is_ignored_with_a_note(make_images: Make) -> None:
    root = make_images([*class_images("train/a", "train/b"), "test/1.png", "test/2.png"])
    data = read_folder(root)
    assert "test" not in data.splits
    assert "Images ignored because they lie outside of any class folder: 2." in data.notes


def test_other_files_are_counted_in_a_note_and_hidden_ones_are_not(make_images: Make) -> None:
    root = make_images([*class_images("a", "b"), "a/.hidden.png", ".cache/x.png", "__MACOSX/a/1.png", "loose.png"])
    for name in ("a/notes.txt", "a/deep/more.TXT", "b/Thumbs.db", "b/Makefile", "b/.DS_Store"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("x")
    data = read_folder(root)
    assert data.classes == ("a", "b")
    assert sum(data.counts("train") + data.counts("val")) == 8
    assert data.notes[1:] == (
        "Images ignored because they lie outside of any class folder: 1.",
        "Files ignored because they are not images: 4 (1 .db, 2 .txt, 1 without extension).",
    )


def test_folders_beside_the_splits_are_named_in_a_note(make_images: Make) -> None:
    root = make_images([*class_images("train/a", "train/b"), "extra/1.png"])
    assert "Folders ignored beside the splits: 'extra'." in read_folder(root).notes


def test_linked_folders_are_followed(make_images: Make, tmp_path: Path) -> None:
    root = make_images([*class_images("data/a"), *class_images("elsewhere")]) / "data"
    (root / "b").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    data = read_folder(root)
    assert data.classes == ("a", "b")
    assert data.counts("train") == [3, 3]


def test_links_in_a_circle_end_and_add_nothing(make_images: Make) -> None:
    root = make_images(class_images("a", "b", "a/deep"))
    for link, target in [("a/up", root), ("a/self", root / "a"), ("a/deep/up", root / "a"), ("b/other", root / "b")]:
        (root / link).symlink_to(target, target_is_directory=True)
    (root / "b/loop").symlink_to(root / "b/loop")
    (root / "b/broken.png").symlink_to(root / "gone.png")
    data = read_folder(root)
    assert sum(data.counts("train") + data.counts("val")) == 12
    assert data.notes[-1] == "Files ignored because they are not images: 2 (2 broken link)."


def test_non_ascii_and_very_long_names_are_read(make_images: Make) -> None:
    long = "n" * 250
    root = make_images(["猫 🐈/é.png", "猫 🐈/ö b.png", f"{long}/{long}.png", f"{long}/2.png"])
    data = read_folder(root)
    assert data.classes == (long, "猫 🐈")
    assert sum(data.counts("train") + data.counts("val")) == 4


def test_empty_class_folders_are_all_named(make_images: Make) -> None:
    root = make_images(class_images("a", "b"))
    (root / "c").mkdir()
    (root / "d").mkdir()
    (root / "d" / "readme.txt").write_text("x")
    with pytest.raises(DataError, match=r"2 class folders without images: 'c', 'd'\. Put images there, or remove"):
        read_folder(root)


def test_many_empty_class_folders_are_counted(make_images: Make) -> None:
    root = make_images(class_images("a"))
    for i in range(8):
        (root / f"empty{i}").mkdir()
    with pytest.raises(DataError, match=r"8 class folders without images: .*'empty4' and 3 more"):
        read_folder(root)


def test_empty_class_folder_of_a_split_is_named_with_its_split(make_images: Make) -> None:
    root = make_images(class_images("train/a", "train/b", "val/a"))
    (root / "val" / "b").mkdir()
    with pytest.raises(DataError, match=r"1 class folder without images: 'val/b'"):
        read_folder(root)


@pytest.mark.parametrize("split", ["val", "test"])
def test_class_that_train_lacks_is_named_with_the_nearest(make_images: Make, split: str) -> None:
    root = make_images(class_images("train/cat", "train/dog", f"{split}/cat", f"{split}/dogs"))
    with pytest.raises(DataError, match=rf"{split}: class folders that .*train lacks: 'dogs'; did you mean 'dog'"):
        read_folder(root)


def test_single_class_is_refused(make_images: Make) -> None:
    root = make_images(class_images("cat"))
    with pytest.raises(DataError, match=r"only one class, 'cat'; a classifier needs at least two\. Make one folder"):
        read_folder(root)


def test_single_folder_around_the_classes_is_pointed_out(make_images: Make) -> None:
    root = make_images(class_images("photos/cat", "photos/dog"))
    with pytest.raises(DataError, match=r"If the folders inside it are the classes, pass .*photos\."):
        read_folder(root)


def test_images_without_class_folders_get_the_layout_explained(make_images: Make) -> None:
    root = make_images(["1.png", "2.png"])
    with pytest.raises(DataError, match=r"holds 2 images but no class folders\. Make one folder .*or write a CSV"):
        read_folder(root)


def test_train_without_class_folders_gets_the_layout_explained(make_images: Make) -> None:
    root = make_images(["train/1.png", "val/2.png"])
    with pytest.raises(DataError, match=r"train: holds 2 images but no class folders"):
        read_folder(root)


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        read_folder(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.txt").write_text("x")
    with pytest.raises(DataError, match=r"holds no images in its 2 class folders\. Expected files ending in \.bmp"):
        read_folder(tmp_path)


def test_splits_without_train_are_refused(make_images: Make) -> None:
    root = make_images(class_images("val/a", "val/b", "test/a", "test/b"))
    with pytest.raises(DataError, match=r"has 'test', 'val' but no folder 'train'"):
        read_folder(root)


def test_two_folders_for_one_split_are_refused(make_images: Make) -> None:
    root = make_images(class_images("train/a", "train/b", "val/a", "valid/a"))
    with pytest.raises(DataError, match=r"both 'val' and 'valid' mean the split 'val'"):
        read_folder(root)


def test_folder_that_cannot_be_listed_is_named(make_images: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_images(class_images("a", "b"))
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"b: cannot be listed \(Permission denied\)\. Check its permissions"):
        read_folder(root)
