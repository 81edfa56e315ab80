from __future__ import annotations

import gc
from pathlib import Path

import pytest

from fullfield.data import read_image_data
from fullfield.data.archives import archive_kind, find_archives
from fullfield.errors import DataError
from tests.data.archive_files import noise, write_class_names, write_folder, write_shard


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["a.tar"], ".tar"),
        (["train-0.tar", "classes.txt", "index.json", ".git/x"], ".tar"),
        (["train/0.tar", "val/0.tar"], ".tar"),
        (["data/train-0.parquet", "README.md"], ".parquet"),
        (["x.PARQUET"], ".parquet"),
        (["dataset_dict.json", "train/state.json"], ".arrow"),
        (["state.json", "data.arrow"], ".arrow"),
        (["cat/1.jpg", "dog/1.jpg"], None),
        (["train/cat/1.jpg", "val/cat/1.jpg"], None),
        (["train/a.jpg", "train/x.tar", "bus/b.jpg"], None),
        (["cat/1.jpg", "photos.tar.gz"], None),
        (["data.arrow"], None),
        ([], None),
    ],
)
def test_kind_of_a_folder(tmp_path: Path, names: list[str], kind: str | None) -> None:
    assert archive_kind(touch(tmp_path, *names)) == kind


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["a.tar", "b.parquet"], r"holds both Parquet files \(b\.parquet\) and tar shards \(a\.tar\)"),
        (["train/a.tar", "val/b.parquet"], r"holds both Parquet files \(b\.parquet\) and tar shards \(a\.tar\)"),
        (["a.tar", "cat/1.jpg"], r"holds tar shards \(a\.tar\) and the folders 'cat' beside them\. Keep one kind"),
        (["a.tar", "1.jpg", "2.jpg"], "and 2 images beside them"),
        (["train-0.tar.gz", "train-1.tar.gz"], r"train-0\.tar\.gz: is compressed.* unpack it to a plain \.tar"),
    ],
)
def test_mixed_and_compressed_kinds_are_refused(tmp_path: Path, names: list[str], says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_image_data(touch(tmp_path, *names))


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["a.tar", "b.tar"], {"train": ["a.tar", "b.tar"]}),
        (["train-1.tar", "train-0.tar", "val-0.tar"], {"train": ["train-0.tar", "train-1.tar"], "val": ["val-0.tar"]}),
        (
            ["imagenet-train_01.tar", "imagenet-Validation_1.tar"],
            {"train": ["imagenet-train_01.tar"], "val": ["imagenet-Validation_1.tar"]},
        ),
        (["train/0.tar", "train/val.tar", "test/9.tar"], {"train": ["0.tar", "val.tar"], "test": ["9.tar"]}),
        (["data/train-0.tar", "data/test-0.tar"], {"train": ["train-0.tar"], "test": ["test-0.tar"]}),
        (["trainer.tar"], {"train": ["trainer.tar"]}),
    ],
)
def test_split_is_told_by_a_word_of_the_name_or_the_folder(
    tmp_path: Path, names: list[str], splits: dict[str, list[str]]
) -> None:
    found, notes = find_archives(touch(tmp_path, *names), ".tar")
    assert {split: [file.name for file in files] for split, files in found.items()} == splits
    assert notes == []


def test_names_of_which_only_some_tell_a_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"1 of its tar shards do not tell their split .*'b\.tar'\. Rename them, such as"
    ):
        find_archives(touch(tmp_path, "train-0.tar", "b.tar"), ".tar")


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar.zst"])
def test_compressed_file_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="is compressed"):
        read_image_data(touch(tmp_path, name) / name)


def test_arrow_file_without_its_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.arrow: is not a data set that can be read"):
        read_image_data(touch(tmp_path, "data.arrow") / "data.arrow")


def test_folder_of_images_is_read_as_before_beside_a_compressed_archive(tmp_path: Path) -> None:
    write_folder(tmp_path, noise(30))
    before = read_image_data(tmp_path)
    (tmp_path / "photos.tar.gz").touch()
    assert read_image_data(tmp_path) == before
    assert before.blocks("train") is None


def test_shards_are_found_whatever_names_them(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-0.tar", noise(30))
    write_class_names(tmp_path)
    of_folder, of_file = read_image_data(tmp_path), read_image_data(str(tmp_path / "train-0.tar"))
    assert of_folder.splits == of_file.splits
    assert (of_folder.source, of_file.source) == (str(tmp_path), str(tmp_path / "train-0.tar"))


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collector_is_as_it_was_after_reading(tmp_path: Path, enabled: bool) -> None:
    write_shard(tmp_path / "0.tar", noise(30))
    (gc.enable if enabled else gc.disable)()
    try:
        read_image_data(tmp_path)
        assert gc.isenabled() == enabled
        (tmp_path / "0.tar").write_bytes(b"x")
        with pytest.raises(DataError):
            read_image_data(tmp_path)
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
