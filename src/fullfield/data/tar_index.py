"""What lies where in a tar shard: found by its headers, or read from `index.json`.

A shard is a plain tar file in the convention of webdataset: the files of one sample follow each other and share the
name up to the first dot, `cat/1.jpg` and `cat/1.cls`. Reading all headers of a large set takes minutes, so
`fullfield pack` stores what they say. Sizes and times of change tell whether that is still so.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fullfield.data.archives import COMPRESSED, compressed_error
from fullfield.data.image import IMAGE_EXTENSIONS
from fullfield.data.place import Archive
from fullfield.errors import DataError, RunError, nearest
from fullfield.files import write_json

__all__ = ["INDEX", "Member", "Shard", "read_index", "scan_shard", "shards_of", "write_index"]

INDEX = "index.json"
FORMAT = "fullfield shards 1"
LABEL_KEYS = ("label", "cls", "class", "target")
LABEL_FILES = ("cls", "json", "txt")  # the first that a sample has decides: .txt beside .cls is often a caption
MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")  # gzip, bzip2, xz, zstd, lz4


class Member(NamedTuple):
    """An image in a shard.

    Attributes:
        name: As the tar file names it.
        offset: Where its bytes begin.
        size: How many they are.
        label: As it stands beside it; a whole number as int.
    """

    name: str
    offset: int
    size: int
    label: int | str | None


@dataclass
class Shard:
    """What a tar file holds.

    Attributes:
        archive: The file.
        members: Its images.
        unpaired: How many files of labels have no image.
        problem: What is wrong with the end of the file, if anything.
    """

    archive: Archive
    members: list[Member]
    unpaired: int = 0
    problem: str | None = None


@dataclass
class _Parts:
    """The files of one sample."""

    image: tuple[str, int, int] | None = None
    labels: dict[str, bytes] = field(default_factory=dict)


def scan_shard(path: Path) -> Shard:
    """Find the images of a shard and their labels by its headers.

    Of a file that is cut off or damaged, what stands before the damage is returned, and `problem` says where it is.

    Raises:
        DataError: It cannot be opened, is not a tar file or compressed, or a sample has two images or a label that is
            none.
    """
    archive = Archive.of(path)
    samples: dict[str, _Parts] = {}
    try:
        with path.open("rb") as file:
            start = file.read(8)
            if path.name.lower().endswith(COMPRESSED) or start.startswith(MAGIC):
                raise compressed_error(path)
            file.seek(0)
            try:
                tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - closing it would close nothing
            except tarfile.TarError as error:
                raise DataError(f"{path}: is not a tar file ({error}). Copy it again from its source.") from error
            whole = True
            with contextlib.suppress(tarfile.TarError):  # raised where the data of a member are cut off
                for member in tar:
                    whole = member.offset_data + member.size <= archive.size
                    if not whole:
                        break
                    if member.isreg():
                        _take(samples, path, member, file.fileno())
            # a tar file ends with blocks of zeros; a damaged header ends tarfile's loop without a word
            whole = whole and os.pread(file.fileno(), tarfile.BLOCKSIZE, tar.offset) == bytes(tarfile.BLOCKSIZE)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}). Check its permissions and the disk.") from error
    shard = Shard(archive, [])
    if not whole:
        cut_off = tar.offset + tarfile.BLOCKSIZE > archive.size
        shard.problem = f"is cut off at byte {archive.size:,}" if cut_off else f"is damaged at byte {tar.offset:,}"
    for key, parts in samples.items():
        if parts.image is None:
            shard.unpaired += bool(parts.labels)
        else:
            shard.members.append(Member(*parts.image, _label(path, key, parts.labels)))
    if shard.problem and shard.members and shard.members[-1].label is None:
        shard.members.pop()  # its label stood behind it
    return shard


def _take(samples: dict[str, _Parts], path: Path, member: tarfile.TarInfo, descriptor: int) -> None:
    """Note an image or a label; other files are none of our business."""
    folder, _, name = member.name.rpartition("/")
    stem, dot, extension = name.partition(".")
    if not stem or not dot:  # hidden files, such as those of macOS, have no stem
        return
    key, extension = f"{folder}/{stem}", extension.lower()
    if f".{extension}" in IMAGE_EXTENSIONS:
        parts = samples.setdefault(key, _Parts())
        if parts.image is not None:
            raise DataError(
                f"{path}: the sample {key.lstrip('/')!r} has two images, {parts.image[0]} and {member.name}. "
                "Keep one, or give each a name of its own before the first dot."
            )
        parts.image = (member.name, member.offset_data, member.size)
    elif extension in LABEL_FILES:
        samples.setdefault(key, _Parts()).labels[extension] = os.pread(descriptor, member.size, member.offset_data)


def _label(path: Path, key: str, files: Mapping[str, bytes]) -> int | str | None:
    """Return the label of a sample from the files beside its image, None if there is none."""
    extension = next((extension for extension in LABEL_FILES if extension in files), None)
    if extension is None:
        return None
    name = f"{path}/{key.lstrip('/')}.{extension}"
    try:
        text = files[extension].decode("utf-8").strip()
        value = json.loads(text) if extension == "json" else text
    except ValueError as error:
        raise DataError(f"{name}: holds no label ({error}). Mend it.") from error
    if isinstance(value, dict):
        label_key = next((label_key for label_key in LABEL_KEYS if label_key in value), None)
        if label_key is None:
            raise DataError(
                f"{name}: has none of the keys {', '.join(LABEL_KEYS)}; it has "
                f"{', '.join(map(repr, value))}{nearest('label', value) or '.'} Add the label, or a file .cls."
            )
        value = value[label_key]
    if isinstance(value, bool) or not isinstance(value, int | str | None):
        raise DataError(f"{name}: the label is {value!r}; it must be a class number or a class name.")
    is_number = isinstance(value, str) and re.fullmatch(r"-1|0|[1-9][0-9]{0,17}", value)
    return int(value) if value is not None and is_number else value


def write_index(folder: Path, shards: Iterable[Shard]) -> None:
    """Write what the shards of a folder hold beside them.

    Args:
        folder: Where the shards lie.
        shards: Whole ones; a shard with a problem is left out, so that it is looked at each time.

    Raises:
        RunError: The folder can't be written.
    """
    entries = {
        shard.archive.path.name: {
            "bytes": shard.archive.size,
            "modified": shard.archive.modified_ns // 1_000_000_000,  # file systems keep seconds when they copy
            "unpaired": shard.unpaired,
            "members": shard.members,
        }
        for shard in shards
        if shard.problem is None
    }
    write_json(folder / INDEX, {"format": FORMAT, "shards": entries})


def read_index(folder: Path) -> dict[str, Shard] | None:
    """Return what the index of a folder says of those shards that are still as they were, by name.

    Returns:
        None if there is no index. One that is damaged or of another program says nothing of any shard.
    """
    path = folder / INDEX
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        entries = document["shards"] if document["format"] == FORMAT else {}
        return {
            name: shard
            for name, entry in entries.items()
            if (folder / name).is_file() and (shard := _from_entry(folder / name, entry)) is not None
        }
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return {}


def _from_entry(path: Path, entry: dict[str, Any]) -> Shard | None:
    archive = Archive.of(path)
    if (archive.size, archive.modified_ns // 1_000_000_000) != (entry["bytes"], entry["modified"]):
        return None
    members = [Member(*values) for values in entry["members"]]
    kinds = (str, int, int, int | str | None)
    for member in members:
        if not all(isinstance(value, kind) for value, kind in zip(member, kinds, strict=True)):
            return None
        if not 0 <= member.offset <= member.offset + member.size <= archive.size:
            return None
    return Shard(archive, members, int(entry["unpaired"]))


def shards_of(folder: Path, files: Iterable[Path]) -> tuple[list[Shard], list[str]]:
    """Return what the shards of one folder hold, from its index as far as that is up to date, and the notes.

    An index that is out of date is written anew.

    Raises:
        DataError: See `scan_shard`.
    """
    files = list(files)
    index = read_index(folder)
    known = index or {}
    shards = [known.get(file.name) or scan_shard(file) for file in files]
    stale = [shard for shard in shards if shard.archive.path.name not in known and shard.problem is None]
    if index is None or not stale:
        return shards, []
    note = f"{folder / INDEX} did not fit {len(stale)} of {len(files)} shards, whose headers were read again"
    try:
        write_index(folder, (known | {shard.archive.path.name: shard for shard in stale}).values())
    except RunError as error:
        return shards, [f"{note}; it was not renewed ({error})."]
    return shards, [f"{note}; it was renewed."]
