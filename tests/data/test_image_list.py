from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from fullfield.data import read_csv, read_folder, read_image_data
from fullfield.errors import DataError

Make = Callable[[Iterable[str]], Path]
IMAGES = [f"{name}/{i}.png" for name in "ab" for i in range(8)]


def test_folder_and_csv_are_told_apart(make_images: Make) -> None:
    root = make_images(IMAGES)
    assert read_image_data(root, val_share=0.5, seed=2) == read_folder(root, val_share=0.5, seed=2)
    (root / "list.CSV").write_text("path,label\n" + "".join(f"{name},{name[0]}\n" for name in IMAGES))
    assert read_image_data(str(root / "list.CSV"), seed=2) == read_csv(root / "list.CSV", seed=2)


def test_folder_and_csv_of_the_same_images_give_the_same_split(make_images: Make) -> None:
    root = make_images(IMAGES)
    (root / "list.csv").write_text("path,label\n" + "".join(f"{name},{name[0]}\n" for name in IMAGES))
    assert read_image_data(root / "list.csv").splits == read_image_data(root).splits


def test_embedded_sample_is_found_by_name() -> None:
    data = read_image_data("sample:blood_cells")
    assert data.source == "sample:blood_cells"
    assert data.classes == ("Platelets", "RBC", "WBC")


def test_unknown_sample_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r"no embedded sample 'blood_cell'; did you mean 'blood_cells'"):
        read_image_data("sample:blood_cell")


def test_missing_path_names_the_nearest_sibling(make_images: Make) -> None:
    root = make_images(["photos/a/1.png"])
    with pytest.raises(DataError, match=r"fotos' does not exist; did you mean 'photos'\? Name a folder of images"):
        read_image_data(root / "fotos")
    with pytest.raises(DataError, match=r"phots/a/b' does not exist; did you mean 'photos'"):
        read_image_data(root / "phots" / "a" / "b")
    with pytest.raises(DataError, match=r"zzzz' does not exist\. Name a folder of images, a \.csv file"):
        read_image_data(root / "zzzz")


@pytest.mark.parametrize("name", ["list.json", "a.png", "noext"])
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=r"is not a data set that can be read\. Name a folder of images"):
        read_image_data(tmp_path / name)


@pytest.mark.parametrize("source", ["", "x" * 5000, "null\0byte"])
def test_impossible_name_is_a_data_error(source: str) -> None:
    with pytest.raises(DataError):
        read_image_data(source)


def test_caltech_is_read_with_its_own_test_part(shared_data: Path) -> None:
    data = read_image_data(shared_data / "caltech99")
    assert len(data.classes) == 99
    assert sum(data.counts("train")) + sum(data.counts("val")) == 2854
    assert data.counts("test") == [10] * 99
    assert min(data.counts("val")) >= 1
