"""Write images and labels into one archive, a tar shard or a Parquet file.

The shard is in the convention of webdataset, the Parquet file as the library `datasets` writes it. The same images
give the same bytes.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fullfield.data.columns import import_pyarrow

__all__ = ["PARQUET_OVERHEAD", "TAR_OVERHEAD", "Record", "image_extension", "write_parquet", "write_tar"]

TAR_OVERHEAD = 512 + 256 + 1024  # bytes an image: header, padding on average, the file of the label
PARQUET_OVERHEAD = 50  # bytes an image: lengths, name, label
ROW_GROUP_BYTES = 16 * 2**20  # so that a reader can keep those of an `epoch_order` window
_EXTENSIONS = (
    (b"\xff\xd8", "jpg"),
    (b"\x89PNG", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
    (b"P5", "pgm"),
    (b"P6", "ppm"),
)


class Record(NamedTuple):
    """One image to write.

    Attributes:
        key: Its name without extension, without a dot after the last slash; unique in the archive.
        data: The image file.
        label: Position of its class.
    """

    key: str
    data: bytes
    label: int

    @property
    def name(self) -> str:
        """The key with the extension of the image's format."""
        return f"{self.key}.{image_extension(self.data)}"


def image_extension(data: bytes) -> str:
    """Return the extension that the first bytes of an image file tell, "jpg" if they tell none."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((extension for magic, extension in _EXTENSIONS if data.startswith(magic)), "jpg")


def write_tar(path: Path, records: Iterable[Record]) -> None:
    """Write a shard: for each image the file itself and `KEY.cls` with its label."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for record in records:
            for name, data in ((record.name, record.data), (f"{record.key}.cls", str(record.label).encode())):
                member = tarfile.TarInfo(name)  # its time of change stays 0
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def write_parquet(path: Path, records: Iterable[Record], classes: Sequence[str]) -> None:
    """Write a Parquet file with the columns image (struct of bytes and path) and label, and the names of the classes.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    arrow = import_pyarrow()
    parquet = import_pyarrow("pyarrow.parquet")
    features = {"image": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
    image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    schema = arrow.schema(
        [("image", image), ("label", arrow.int64())],
        metadata={b"huggingface": json.dumps({"info": {"features": features}}).encode()},
    )
    # images are compressed already, and no two are the same
    with parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for group in _groups(records):
            images: list[dict[str, Any]] = [{"bytes": record.data, "path": record.name} for record in group]
            columns = {"image": images, "label": [record.label for record in group]}
            writer.write_table(arrow.table(columns, schema=schema), row_group_size=len(group))


def _groups(records: Iterable[Record]) -> Iterator[list[Record]]:
    group: list[Record] = []
    size = 0
    for record in records:
        group.append(record)
        size += len(record.data)
        if size >= ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
