"""Ten thousand files of which one thousand are no images: the epoch ends, and nothing is lost, twice or silent."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from fullfield.data import EpochSampler, ImageClassification, Sample, collate, read_folder
from tests.data.archive_files import encoded

COUNT, BAD_EVERY, BODIES = 10_000, 10, 8
KINDS = ("empty", "cut off", "text", "folder", "broken link", "no header", "pipe", "forbidden", "html", "zeros")


def write_bad(path: Path, kind: str, whole: bytes) -> None:
    """Make what is not an image at `path`."""
    contents = {
        "empty": b"",
        "cut off": whole[: len(whole) // 2],
        "text": b"this is not an image\n" * 20,
        "no header": whole[30:],
        "html": b"<!DOCTYPE html><title>404</title>",
        "zeros": bytes(len(whole)),
        "forbidden": whole,
    }
    if kind == "folder":
        path.mkdir()
    elif kind == "broken link":
        path.symlink_to(path.with_name("nowhere.jpg"))
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(contents[kind])
    if kind == "forbidden":
        path.chmod(0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, str | None]]:
    """Files in folders of classes, each with what is wrong with it."""
    root = tmp_path_factory.mktemp("many")
    bodies = []
    for number in range(BODIES):
        body = root / f"body{number}"
        body.write_bytes(encoded(number, "JPEG", (32, 32)))
        bodies.append(body)
    whole = bodies[0].read_bytes()
    found: list[tuple[Path, str | None]] = []
    for number in range(COUNT):
        path = root / "set" / "ab"[number % 2] / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = None if number % BAD_EVERY else KINDS[number // BAD_EVERY % len(KINDS)]
        if kind == "forbidden" and os.geteuid() == 0:
            kind = "empty"  # root may read everything
        if kind is None:
            path.hardlink_to(bodies[number % BODIES])
        else:
            write_bad(path, kind, whole)
        found.append((path, kind))
    return found


def small(image: Image.Image) -> torch.Tensor:
    """Return as little of an image as shows that it was decoded."""
    assert image.size == (32, 32)
    return torch.zeros(1, 1, 1)


def test_the_epoch_ends_with_each_bad_file_named_once_and_each_other_image_seen_once(
    files: list[tuple[Path, str | None]],
) -> None:
    dataset = ImageClassification([Sample(path, number % 2) for number, (path, _) in enumerate(files)], small)
    sampler = EpochSampler(COUNT, shuffle=True, seed=0)
    loader = DataLoader(dataset, 64, sampler=sampler, num_workers=2, collate_fn=collate, multiprocessing_context="fork")
    seen: Counter[int] = Counter()
    named: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    for batch in loader:
        seen.update(batch.indices.tolist())
        named.update(bad.path for bad in batch.unreadable)
        reasons |= {bad.path: bad.reason for bad in batch.unreadable}
    bad = {str(path): kind for path, kind in files if kind is not None}
    assert len(bad) == COUNT // BAD_EVERY
    assert named == dict.fromkeys(bad, 1)
    assert seen == {number: 1 for number, (_, kind) in enumerate(files) if kind is None}
    expected = {
        "empty": "is empty (0 bytes)",
        "cut off": "is damaged or cut off",
        "folder": "is a folder",
        "broken link": "does not exist",
        "pipe": "is not a regular file",
        "forbidden": "this user may not read it",
    }
    for path, kind in bad.items():
        assert reasons[path].startswith(expected.get(kind, "is not a JPEG"))


def test_the_reader_lists_what_may_be_an_image_and_counts_the_rest(files: list[tuple[Path, str | None]]) -> None:
    data = read_folder(files[0][0].parents[1])
    listed = {sample.path for samples in data.splits.values() for sample in samples}
    assert listed == {path for path, kind in files if kind not in ("folder", "broken link", "pipe")}
    assert "Files ignored because they are not images: 200 (100 broken link, 100 special file)." in data.notes
