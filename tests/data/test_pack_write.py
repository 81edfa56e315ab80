from __future__ import annotations

import importlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from fullfield.data import pack_write as module
from fullfield.data.pack_write import Record, image_extension, write_parquet, write_tar


@pytest.mark.parametrize(
    ("kind", "extension"),
    [
        ("JPEG", "jpg"),
        ("PNG", "png"),
        ("BMP", "bmp"),
        ("GIF", "gif"),
        ("WEBP", "webp"),
        ("TIFF", "tif"),
        ("PPM", "ppm"),
    ],
)
def test_extension_is_told_by_the_first_bytes(kind: str, extension: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, format=kind)
    assert image_extension(buffer.getvalue()) == extension


def test_grey_and_big_endian_files_are_known_and_others_called_jpg() -> None:
    assert image_extension(b"P5 1 1 255 x") == "pgm"
    assert image_extension(b"MM\0*") == "tif"
    assert [image_extension(data) for data in (b"", b"text", b"RIFFxxxxWAVE")] == ["jpg"] * 3


def test_shard_depends_on_nothing_but_its_images(tmp_path: Path) -> None:
    records = [Record(f"ä/{'x' * 120}{i}", b"\xff\xd8" + bytes(i), i) for i in range(5)]
    write_tar(tmp_path / "a.tar", records)
    write_tar(tmp_path / "b.tar", iter(records))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert [(m.name, m.mtime, m.uid) for m in tar][:2] == [(records[0].name, 0, 0), (f"{records[0].key}.cls", 0, 0)]


def test_parquet_has_row_groups_of_the_wanted_size_and_the_metadata_of_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra data")
    parquet = importlib.import_module("pyarrow.parquet")
    monkeypatch.setattr(module, "ROW_GROUP_BYTES", 250)
    records = [Record(f"a/{i}", bytes([i]) * 100, i % 2) for i in range(8)]
    write_parquet(tmp_path / "a.parquet", records, ("no", "yes"))
    file = parquet.ParquetFile(tmp_path / "a.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)] == [3, 3, 2]
    assert file.read().to_pylist() == [
        {"image": {"bytes": record.data, "path": f"a/{i}.jpg"}, "label": i % 2} for i, record in enumerate(records)
    ]
    features = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
    assert features == {"image": {"_type": "Image"}, "label": {"names": ["no", "yes"], "_type": "ClassLabel"}}


def test_archives_without_images_are_valid(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [])
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getnames() == []
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra data")
    write_parquet(tmp_path / "a.parquet", [], ("a",))
    assert parquet.ParquetFile(tmp_path / "a.parquet").metadata.num_rows == 0
