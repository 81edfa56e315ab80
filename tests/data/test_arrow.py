from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fullfield.data import open_sample, read_arrow, read_image_data, read_sample
from fullfield.data.image_data import Sample
from fullfield.errors import DataError, ImageError
from tests.data.archive_files import CLASSES, encoded, hub_table, noise, write_saved, write_saved_split

arrow = pytest.importorskip("pyarrow", reason="needs the extra data")


def read_all(sample: Sample) -> bytes:
    with open_sample(sample) as stream:
        return stream.read()


def test_saved_splits_hold_their_images_in_order(tmp_path: Path) -> None:
    write_saved_split(tmp_path / "train", [hub_table(noise(10)), hub_table(noise(7, 10))])
    write_saved(tmp_path, {"validation": noise(5, 50)})
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "validation", "unsupervised"]}')
    data = read_image_data(tmp_path)
    assert (data.classes, data.notes) == (CLASSES, ("Splits ignored: 'unsupervised'.",))
    for split, images in (("train", noise(17)), ("val", noise(5, 50))):
        assert [(read_all(s), s.label) for s in data.splits[split]] == [image[1:] for image in images]
    assert data.splits["train"][12].path == tmp_path / "train" / "data-00001-of-00002.arrow" / "2"
    assert data.blocks("train") == (range(4), range(4, 8), range(8, 10), range(10, 14), range(14, 17))


def test_single_split_is_all_training(tmp_path: Path) -> None:
    data = read_arrow(write_saved_split(tmp_path / "test", [hub_table(noise(20))]))
    assert set(data.splits) == {"train", "val"}


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="needs the library datasets")
def test_what_datasets_saves_is_read(tmp_path: Path) -> None:
    for name, data, label in noise(12):
        path = tmp_path / "photos" / CLASSES[label] / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    save = "import datasets, sys; d = datasets.load_dataset('imagefolder', data_dir=sys.argv[1], cache_dir=sys.argv[2])"
    words = [sys.executable, "-c", f"{save}\nd.save_to_disk(sys.argv[3])"]
    subprocess.run([*words, tmp_path / "photos", tmp_path / "cache", tmp_path / "saved"], check=True, timeout=200)
    data = read_arrow(tmp_path / "saved")
    found = {(read_all(s), data.classes[s.label]) for part in data.splits.values() for s in part}
    assert found == {(image, CLASSES[label]) for _, image, label in noise(12)}


def test_row_without_bytes_is_named(tmp_path: Path) -> None:
    image = arrow.array([{"bytes": encoded(0), "path": None}] * 3 + [None], hub_table([]).schema.field("image").type)
    table = arrow.table({"image": image, "label": [0, 1, 0, 1]}, schema=hub_table([]).schema)
    data = read_arrow(write_saved_split(tmp_path / "train", [table]), val_share=0.01)
    bad = next(s for part in data.splits.values() for s in part if s.path.name == "3")
    with pytest.raises(ImageError, match=r"arrow/3: .*its row holds no image"):
        read_sample(bad)


def test_cut_off_file_is_named_and_what_is_left_of_it_is_used(tmp_path: Path) -> None:
    folder = write_saved_split(tmp_path / "train", [hub_table(noise(40))])
    path = folder / "data-00000-of-00001.arrow"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    data = read_arrow(folder)
    count = sum(map(len, data.splits.values()))
    assert 0 < count < 40
    assert f"{path} is damaged or cut off" in data.notes[-1]
    assert f"the {count} images before that are used" in data.notes[-1]
    found = sorted((int(s.path.name), read_all(s)) for part in data.splits.values() for s in part)
    assert found == [(number, image[1]) for number, image in enumerate(noise(count))]


@pytest.mark.parametrize("contents", [b"", b"hello", b"\xff" * 100])
def test_other_file_is_no_arrow_stream(tmp_path: Path, contents: bytes) -> None:
    folder = write_saved_split(tmp_path / "train", [hub_table(noise(12))])
    (folder / "data-00000-of-00001.arrow").write_bytes(contents)
    with pytest.raises(DataError, match=r"of-00001\.arrow: cannot be read as an Arrow stream"):
        read_arrow(folder)


@pytest.mark.parametrize(
    ("name", "document", "says"),
    [
        ("train/state.json", None, r"state\.json: cannot be read as what datasets\.save_to_disk writes"),
        ("train/state.json", [], r"state\.json: cannot be read"),
        ("train/state.json", {"_data_files": 3}, r"state\.json: cannot be read .*is not a list"),
        ("train/state.json", {"_data_files": [3]}, "does not name its data files"),
        ("train/state.json", {"_data_files": []}, "does not name its data files"),
        ("train/state.json", {"_data_files": [{"filename": "gone.arrow"}]}, r"gone\.arrow: cannot be opened \(No such"),
        ("train/state.json", {"_data_files": [], "_indices_data_files": [1]}, r"Call flatten_indices\(\)"),
        ("dataset_dict.json", {"splits": ["test"]}, "holds no images to train on"),
        ("dataset_dict.json", {"splits": ["train", "val"]}, r"val/state\.json: cannot be read"),
        ("dataset_dict.json", {}, r"dataset_dict\.json: cannot be read"),
    ],
)
def test_folder_that_does_not_fit_the_format_is_refused(tmp_path: Path, name: str, document: object, says: str) -> None:
    write_saved(tmp_path, {"train": noise(12), "test": noise(3)})
    (tmp_path / name).write_text("{" if document is None else json.dumps(document))
    with pytest.raises(DataError, match=says):
        read_arrow(tmp_path)


def test_files_with_other_class_names_contradict_each_other(tmp_path: Path) -> None:
    other = hub_table(noise(6)).replace_schema_metadata(None)
    folder = write_saved_split(tmp_path / "train", [hub_table(noise(6)), other])
    with pytest.raises(DataError, match="has other class names than"):
        read_arrow(folder)
