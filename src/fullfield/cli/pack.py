"""`fullfield pack DATA OUT`: many small files into few large ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rich.markup import escape

from fullfield.cli.parse import parse
from fullfield.data.pack import UNREADABLE, pack
from fullfield.progress import console, output

__all__ = ["PackArguments", "run"]

NAMED = 10  # bad images that are named on the screen


@dataclass(frozen=True)
class PackArguments:
    """Pack a data set into tar shards or Parquet files, which every command reads like the original.

    Stopped, it continues with the missing files when it is run again.
    """

    data: str
    """Image folder, CSV list, shards, Parquet files, saved Hugging Face data set, or sample:NAME."""
    out: str
    """Folder to write; new, or with an unfinished pack of the same data."""
    to: Literal["shards", "parquet"] = "shards"
    """Tar shards in the convention of webdataset, with an index; or Parquet files."""
    shard_size: str = "256MB"
    """About how large a file becomes."""
    images_per_shard: int | None = None
    """How many images a file gets, instead of --shard-size."""
    max_side: int | None = None
    """Reduce larger images to this longer side, pixels, as JPEG of quality 95. Others are copied byte for byte."""
    check: bool = False
    """Decode every image, and leave out those that are damaged."""
    seed: int = 0
    """Fixes the order of the images, and those of a validation part that has to be cut."""
    val_share: float = 0.15
    """Share of each class for validation, where the data have no validation part."""
    workers: int | None = None
    """Threads that read images. By default one a processor core, at most 8."""


def run(argv: list[str]) -> int:
    """Pack and say what was made; 1 if an image could not be read."""
    arguments = parse(PackArguments, "pack", argv)
    done = pack(
        arguments.data,
        arguments.out,
        to=arguments.to,
        shard_size=arguments.shard_size,
        images_per_shard=arguments.images_per_shard,
        max_side=arguments.max_side,
        check=arguments.check,
        seed=arguments.seed,
        val_share=arguments.val_share,
        workers=arguments.workers,
    )
    for note in done.notes:
        console.print(escape(note), soft_wrap=True)
    for bad in done.bad[:NAMED]:
        console.print(f"{bad.action}: {escape(bad.path)}: {escape(bad.reason)}", style="yellow", soft_wrap=True)
    if done.bad:
        listed = escape(str(done.out / UNREADABLE))
        console.print(f"{len(done.bad)} images could not be read, all are in {listed}", style="red", soft_wrap=True)
    before = f", {done.continued} of them made before" if done.continued else ""
    output().print(
        f"{done.images:,} images in {len(done.archives)} files of together {done.bytes / 1e6:,.1f} MB{before}: "
        f"{escape(str(done.out))}",
        soft_wrap=True,
    )
    return 1 if done.bad else 0
