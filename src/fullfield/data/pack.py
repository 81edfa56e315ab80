"""Pack any data set into few large files: tar shards, or Parquet.

A million small files are slow to list, to copy and to read over a network; a few hundred archives are not. Images
are shuffled once, so that every archive has some of each class, and copied as they are. An archive gets its name when
it is whole, so that packing can be stopped at any time and continues when it is run again. `pack.json` holds what
the archives were made from.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from fullfield.data.columns import import_pyarrow
from fullfield.data.image import decode_image
from fullfield.data.image_data import SPLITS, ImageData, Sample
from fullfield.data.image_list import read_image_data
from fullfield.data.order import epoch_order
from fullfield.data.pack_write import PARQUET_OVERHEAD, TAR_OVERHEAD, Record, write_parquet, write_tar
from fullfield.data.place import open_sample
from fullfield.data.shards import CLASSES, MANIFEST
from fullfield.data.tar_index import scan_shard, write_index
from fullfield.errors import ConfigError, DataError, ImageError, RunError, nearest
from fullfield.files import atomic_write, write_error, write_json
from fullfield.progress import image_progress

__all__ = ["KINDS", "BadImage", "PackResult", "pack", "parse_size"]

KINDS = ("shards", "parquet")
UNREADABLE = "unreadable.csv"
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
LOOKS = 64  # images whose sizes tell how many fit into a shard
JPEG_QUALITY = 95
CHUNK = 64  # images that are prepared at a time


class BadImage(NamedTuple):
    """An image that could not be read or decoded, why, and whether it was copied as it is or left out."""

    path: str
    reason: str
    action: str


@dataclass(frozen=True)
class PackResult:
    """What `pack` has made.

    Attributes:
        out: The folder.
        archives: Its shards or Parquet files.
        images: How many images they hold.
        bytes: Size of the archives together.
        continued: How many of the archives were there before.
        bad: Images that could not be read or decoded; `unreadable.csv` lists them.
        notes: What the reader of the data said.
    """

    out: Path
    archives: tuple[Path, ...]
    images: int
    bytes: int
    continued: int
    bad: tuple[BadImage, ...]
    notes: tuple[str, ...]


class _Archive(NamedTuple):
    """An archive to write: its file, and the samples with their keys."""

    path: Path
    samples: list[tuple[str, Sample]]


def pack(
    data: str | Path,
    out: str | Path,
    *,
    to: str = "shards",
    shard_size: str | int = "256MB",
    images_per_shard: int | None = None,
    max_side: int | None = None,
    check: bool = False,
    seed: int = 0,
    val_share: float = 0.15,
    workers: int | None = None,
) -> PackResult:
    """Pack a data set into tar shards or Parquet files that every command reads like the original.

    The parts stay as `read_image_data` gives them: a validation part that it cuts becomes one of its own.

    Args:
        data: Whatever `read_image_data` reads.
        out: A folder that is empty, new, or holds an unfinished pack of the same data with the same options, which
            is then continued.
        to: "shards" (tar files in the convention of webdataset, with an index) or "parquet".
        shard_size: About how large an archive becomes, bytes or such as "256MB".
        images_per_shard: How many images an archive gets; instead of `shard_size`.
        max_side: Reduce images whose longer side is more, pixels, and encode them as JPEG of quality 95. All others
            are copied byte for byte.
        check: Decode every image, and leave out those that are damaged.
        seed: Fixes the order, and which images a validation part takes that has to be cut.
        val_share: The share of each class to cut for validation, where the data have no validation part.
        workers: Threads that read images; by default one a processor core, at most 8.

    Raises:
        DataError: The data cannot be read, or not one image of them.
        ConfigError: An option has an impossible value.
        RunError: `out` holds something else, lies in the data, or cannot be written. Whole archives stay.
        MissingExtraError: Parquet needs pyarrow, which is not installed.
    """
    _check_options(to, images_per_shard, max_side, workers)
    wanted = parse_size(shard_size)
    if to == "parquet":
        import_pyarrow()
    out = Path(out)
    if out.resolve() == Path(data).resolve() or Path(data).resolve() in out.resolve().parents:
        raise RunError(f"{out} lies inside the data {data}; choose a folder outside")
    contents = read_image_data(data, val_share=val_share, seed=seed)
    prepare = partial(_prepare, max_side=max_side, check=check)
    manifest = {
        "format": "fullfield pack 1",
        "images": _digest(contents),
        "to": to,
        "size": images_per_shard or f"{wanted} bytes",
        "max_side": max_side,
        "check": check,
        "seed": seed,
    }
    begun = _open_folder(out, manifest)
    per_archive = images_per_shard or begun or _images_per_archive(contents, wanted, to, prepare)
    write_json(out / MANIFEST, manifest | {"per_archive": per_archive, "finished": False})
    write_json(out / CLASSES, list(contents.classes))

    splits = [split for split in SPLITS if split in contents.splits]
    archives = [archive for split in splits for archive in _plan(contents, split, out, to, per_archive, seed)]
    bad = _read_bad(out)
    continued = 0
    total = sum(map(len, contents.splits.values()))
    with image_progress("packing", total) as advance, ThreadPoolExecutor(workers or _cores()) as pool:
        for archive in archives:
            if archive.path.exists():
                continued += 1
                advance(len(archive.samples))
                continue
            with atomic_write(archive.path) as unfinished:
                known = dict(bad)
                records = _records(archive.samples, pool, prepare, bad, advance)
                if to == "parquet":
                    write_parquet(unfinished, records, contents.classes)
                else:
                    write_tar(unfinished, records)
                if bad != known:  # before the archive gets its name: run again, it would not be looked at
                    _write_bad(out, bad)
    paths = tuple(archive.path for archive in archives)
    images = total - sum(entry.action == "left out" for entry in bad.values())
    if not images:
        raise DataError(f"{data}: not one of its {total} images can be read; see {out / UNREADABLE}.")
    if to == "shards":
        write_index(out, map(scan_shard, paths))
    write_json(out / MANIFEST, manifest | {"per_archive": per_archive, "finished": True})
    size = sum(path.stat().st_size for path in paths)
    return PackResult(out, paths, images, size, continued, tuple(bad.values()), contents.notes)


def parse_size(size: str | int) -> int:
    """Return the bytes that "256MB", "1.5 GiB" or a plain number mean.

    Raises:
        ConfigError: It is no such size, or less than one byte.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([KMG]I?B)?", str(size).strip().upper())
    bytes_ = int(float(match[1]) * UNITS[match[2] or ""]) if match else 0
    if bytes_ < 1:
        raise ConfigError(f"shard_size is {size!r}; give bytes, or a number with KB, MB or GB, such as 256MB")
    return bytes_


def _check_options(to: str, images_per_shard: int | None, max_side: int | None, workers: int | None) -> None:
    if to not in KINDS:
        raise ConfigError(f"to is {to!r}{nearest(to, KINDS) or '.'} Use one of {', '.join(KINDS)}.")
    for name, value in (("images_per_shard", images_per_shard), ("max_side", max_side), ("workers", workers)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")


def _cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return min(8, cores)


def _digest(contents: ImageData) -> str:
    """Return a hash of the list of images: their names, labels, sizes and times of change."""
    digest = hashlib.sha256(json.dumps(contents.classes).encode())
    for split, samples in contents.splits.items():
        for sample in samples:
            try:
                status = sample.path.stat() if sample.place is None else None
                state: Any = (status.st_size, status.st_mtime_ns) if status else sample.place
            except OSError:
                state = None
            line = f"{split}\0{os.path.abspath(sample.path)}\0{sample.label}\0{state}\n"  # noqa: PTH100 - links stay
            digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _open_folder(out: Path, manifest: dict[str, Any]) -> int | None:
    """Make the folder, or return the images an archive of the pack that was begun in it.

    Raises:
        RunError: It holds something else or cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if all(file.name.startswith(".") for file in out.iterdir()):
            return None
        begun = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        per_archive = int(begun["per_archive"])
    except (FileNotFoundError, FileExistsError, NotADirectoryError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{out} exists and is not a pack of Fullfield's; choose another folder") from error
    except OSError as error:
        raise write_error(out, error) from error
    changed = [name for name, value in manifest.items() if begun.get(name) != value]
    if changed:
        what = "the list of images" if changed == ["images"] else ", ".join(changed)
        raise RunError(f"{out} holds a pack of other data or with other options ({what}); choose another folder")
    for file in out.glob(".*.partial"):  # of a process that was killed
        file.unlink(missing_ok=True)
    return per_archive


def _images_per_archive(contents: ImageData, wanted: int, to: str, prepare: Callable[[Sample], _Prepared]) -> int:
    """Estimate how many images fill an archive, from some that are spread over the list."""
    samples = [sample for part in contents.splits.values() for sample in part]
    sizes = [len(found.data) for sample in samples[:: -(-len(samples) // LOOKS)] if (found := prepare(sample)).data]
    overhead = TAR_OVERHEAD if to == "shards" else PARQUET_OVERHEAD
    return max(1, round(wanted / (sum(sizes) / max(1, len(sizes)) + overhead)))


def _plan(contents: ImageData, split: str, out: Path, to: str, per_archive: int, seed: int) -> Iterator[_Archive]:
    """Divide a part into archives of equally many images, in an order that the seed fixes."""
    samples = contents.splits[split]
    keyed = list(zip(_keys(samples, contents.classes), samples, strict=True))
    # archives are read block by block here too
    order = epoch_order(len(samples), seed=seed, epoch=0, blocks=contents.blocks(split))
    count = -(-len(samples) // per_archive)
    for number in range(count):
        chosen = order[number * len(order) // count : (number + 1) * len(order) // count]
        name = f"{split}-{number:06}.tar" if to == "shards" else f"{split}-{number:05}-of-{count:05}.parquet"
        yield _Archive(out / name, [keyed[index] for index in chosen])


def _keys(samples: Sequence[Sample], classes: Sequence[str]) -> Iterator[str]:
    """Yield a name for each image, class/name, that is unique and has no dot: webdataset cuts names there."""
    seen: Counter[str] = Counter()
    for sample in samples:
        key = "/".join(re.sub(r"[^\w-]", "_", name)[:40] for name in (classes[sample.label], sample.path.stem))
        seen[key] += 1
        # "~" cannot come from a name
        yield key if seen[key] == 1 else f"{key}~{seen[key]}"


class _Prepared(NamedTuple):
    """The bytes to store, None if there are none, and what is wrong with them."""

    data: bytes | None
    problem: str | None = None


def _prepare(sample: Sample, *, max_side: int | None, check: bool) -> _Prepared:
    name = str(sample.path)
    try:
        with open_sample(sample) as stream:
            data = stream.read()
        if max_side is None and not check:
            return _Prepared(data)
    except (ImageError, OSError) as error:
        return _Prepared(None, str(error).removeprefix(f"{name}: "))
    try:
        image = decode_image(data, name)
    except ImageError as error:
        return _Prepared(None if check else data, str(error).removeprefix(f"{name}: "))
    if max_side is None or max(image.size) <= max_side:
        return _Prepared(data)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return _Prepared(buffer.getvalue())


def _records(
    samples: Sequence[tuple[str, Sample]],
    pool: ThreadPoolExecutor,
    prepare: Callable[[Sample], _Prepared],
    bad: dict[str, BadImage],
    advance: Callable[[int], None],
) -> Iterator[Record]:
    """Yield the images of an archive in order, and note in `bad` what is wrong with them."""
    for start in range(0, len(samples), CHUNK):
        chunk = samples[start : start + CHUNK]
        for (key, sample), (data, problem) in zip(chunk, pool.map(prepare, [s for _, s in chunk]), strict=True):
            path = str(sample.path)
            bad.pop(path, None)  # noted when the archive was begun before
            if problem is not None:
                bad[path] = BadImage(path, problem, "left out" if data is None else "copied")
            if data is not None:
                yield Record(key, data, sample.label)
        advance(len(chunk))


def _read_bad(out: Path) -> dict[str, BadImage]:
    path = out / UNREADABLE
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return {row["path"]: BadImage(row["path"], row["reason"], row["action"]) for row in csv.DictReader(file)}


def _write_bad(out: Path, bad: dict[str, BadImage]) -> None:
    with (
        atomic_write(out / UNREADABLE) as unfinished,
        unfinished.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        csv.writer(file).writerows([BadImage._fields, *bad.values()])
