from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

import pytest

from fullfield.data import open_sample, read_parquet, read_sample
from fullfield.data import parquet as module
from fullfield.data.image_data import Sample
from fullfield.errors import DataError, ImageError, MissingExtraError
from tests.data.archive_files import CLASSES, encoded, hub_table, noise, write_parquet

arrow = pytest.importorskip("pyarrow", reason="needs the extra data")


def read_all(sample: Sample) -> bytes:
    with open_sample(sample) as stream:
        return stream.read()


def plain(**columns: list[Any]) -> Any:
    return arrow.table(columns)


def test_files_of_the_hub_hold_their_images_in_order(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", hub_table(noise(10)))
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", hub_table(noise(7, 10)))
    write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", hub_table(noise(5, 50)))
    data = read_parquet(tmp_path)
    assert data.classes == CLASSES
    assert (data.notes, set(data.splits)) == ((), {"train", "val"})
    for split, images in (("train", noise(17)), ("val", noise(5, 50))):
        assert [(read_all(s), s.label) for s in data.splits[split]] == [image[1:] for image in images]
    assert data.splits["train"][12].path == tmp_path / "data" / "train-00001-of-00002.parquet" / "2"
    assert data.blocks("train") == (range(4), range(4, 8), range(8, 10), range(10, 14), range(14, 17))


def test_plain_bytes_with_text_labels_are_read(tmp_path: Path) -> None:
    images = noise(8)
    table = plain(img=[data for _, data, _ in images], target=["a", "b"] * 4, width=[3] * 8)
    data = read_parquet(write_parquet(tmp_path / "x.parquet", table))
    assert data.classes == ("a", "b")
    together = [*data.splits["train"], *data.splits["val"]]
    assert {read_all(sample) for sample in together} == {data for _, data, _ in images}


def test_dictionary_labels_and_large_binary_images_are_read(tmp_path: Path) -> None:
    images = arrow.array([data for _, data, _ in noise(8)], arrow.large_binary())
    table = plain(image=images, label=arrow.array(["a", "b"] * 4).dictionary_encode())
    assert read_parquet(write_parquet(tmp_path / "x.parquet", table)).classes == ("a", "b")


def test_row_without_bytes_is_read_from_its_path_or_named(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(encoded(1))
    images = [{"bytes": encoded(0), "path": None}, {"bytes": None, "path": "1.png"}, {"bytes": None, "path": "2.png"}]
    table = plain(image=[*images, None, *images], label=[0, 1, 0, 1, 0, 1, 0])
    data = read_parquet(write_parquet(tmp_path / "x.parquet", table), val_share=0.01)
    samples = sorted((s for part in data.splits.values() for s in part), key=lambda s: int(s.path.name))
    assert read_all(samples[1]) == encoded(1)
    with pytest.raises(ImageError, match=r"x\.parquet/2: .*its row holds only the path '2\.png' of a file: .*No such"):
        read_sample(samples[2])
    with pytest.raises(ImageError, match=r"x\.parquet/3: .*its row holds no image"):
        read_sample(samples[3])


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"label": [0, 1]}, r"no column of images; it has 'label'\. Name the column 'image'"),
        ({"image": [b"", b""], "lable": [0, 1]}, r"no column of labels; it has 'image', 'lable'\. Name the column"),
        ({"image": ["a", "b"], "label": [0, 1]}, "column 'image' holds string; expected encoded images"),
        ({"image": [{"path": "x"}] * 2, "label": [0, 1]}, "column 'image' holds struct<path: string>"),
        ({"image": [b"", b""], "label": [0.5, 1.0]}, "column 'label' holds double; expected numbers or text"),
        ({"image": [b"", b""], "label": [0, None]}, r"1 image without a label: '.*x\.parquet/1'"),
        ({"image": [], "label": arrow.array([], arrow.int64())}, "the column 'image' holds null"),
    ],
)
def test_file_that_lacks_what_is_needed_is_refused(tmp_path: Path, columns: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_parquet(write_parquet(tmp_path / "x.parquet", plain(**columns)))


def test_of_several_label_columns_the_one_with_the_usual_name_is_taken(tmp_path: Path) -> None:
    table = plain(image=[b"x"] * 8, coarse_label=[0] * 8, fine_label=[3, 4] * 4)
    assert read_parquet(write_parquet(tmp_path / "x.parquet", table)).classes == ("3", "4")


def test_files_with_other_class_names_contradict_each_other(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", hub_table(noise(6)))
    write_parquet(tmp_path / "train-1.parquet", plain(image=[b"x"], label=[0]))
    with pytest.raises(DataError, match=r"train-1\.parquet: has other class names than .*train-0\.parquet"):
        read_parquet(tmp_path)


def test_damaged_metadata_of_datasets_is_passed_over(tmp_path: Path) -> None:
    table = hub_table(noise(12)).replace_schema_metadata({"huggingface": "{"})
    assert read_parquet(write_parquet(tmp_path / "x.parquet", table)).classes == ("0", "1", "2")


@pytest.mark.parametrize("keep", [0, 3, 100, -10])
def test_cut_off_or_foreign_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = write_parquet(tmp_path / "x.parquet", hub_table(noise(12)))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"x\.parquet: cannot be read as a Parquet file .* Copy it again"):
        read_parquet(path)


def test_damaged_row_group_costs_its_own_images_only(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "train-0.parquet", hub_table(noise(12)))
    group = importlib.import_module("pyarrow.parquet").ParquetFile(path).metadata.row_group(1)
    start = min(group.column(c).dictionary_page_offset or group.column(c).data_page_offset for c in range(2))
    contents = bytearray(path.read_bytes())
    contents[start : start + 40] = b"\xff" * 40
    path.write_bytes(contents)
    write_parquet(tmp_path / "val-0.parquet", hub_table(noise(3)))
    samples = read_parquet(tmp_path).splits["train"]
    for number, sample in enumerate(samples):
        if number in range(4, 8):
            with pytest.raises(ImageError, match=rf"0\.parquet/{number}: .*row group 1 of .* is damaged"):
                read_sample(sample)
        else:
            assert read_all(sample) == noise(12)[number][1]


def test_each_row_group_is_read_once_while_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "train-0.parquet", hub_table(noise(12)))
    write_parquet(tmp_path / "val-0.parquet", hub_table(noise(3)))
    samples = read_parquet(tmp_path).splits["train"]
    read, groups = module._read_column, []

    def count(archive: Any, column: str, group: int) -> Any:
        groups.append(group)
        return read(archive, column, group)

    monkeypatch.setattr(module, "_read_column", count)
    module._row_groups.forget()
    for sample in [*samples, *reversed(samples)]:
        read_sample(sample)
    assert groups == [0, 1, 2]
    monkeypatch.setattr(module, "KEPT_BYTES", 1)  # then only the last one is kept
    module._row_groups.forget()
    for sample in [*samples, *reversed(samples)]:
        read_sample(sample)
    assert groups == [0, 1, 2, 0, 1, 2, 1, 0]


def test_file_that_was_changed_is_an_image_error(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", hub_table(noise(12)))
    sample = read_parquet(path).splits["train"][0]
    write_parquet(path, hub_table(noise(9)))
    with pytest.raises(ImageError, match="was changed since its images were listed"):
        read_sample(sample)


def test_large_row_groups_are_said_to_be_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_BYTES", 1000)
    data = read_parquet(write_parquet(tmp_path / "x.parquet", hub_table(noise(12))))
    assert "reading will be slow. `fullfield pack` makes shards" in data.notes[-1]


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "x.parquet", hub_table(noise(12)))

    def refuse(name: str) -> Any:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr("fullfield.data.columns.import_module", refuse)
    with pytest.raises(MissingExtraError, match=r"need pyarrow: pip install 'fullfield\[data\]'"):
        read_parquet(path)


def test_pyarrow_is_imported_by_no_module_of_the_room() -> None:
    for path in Path(module.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not isinstance(node, ast.Import) or "pyarrow" not in {alias.name for alias in node.names}, path
            assert not isinstance(node, ast.ImportFrom) or "pyarrow" not in str(node.module), path
