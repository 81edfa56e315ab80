from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from fullfield.data.tar_index import INDEX, read_index, scan_shard, shards_of, write_index
from fullfield.errors import DataError, RunError
from tests.data.archive_files import encoded, noise, write_members, write_shard

CAT = ("a/1.png", encoded(0))


def test_places_are_those_of_tarfile(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", noise(7))
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar if m.name.endswith(".png")]
    shard = scan_shard(path)
    assert [member[:3] for member in shard.members] == expected
    assert [member.label for member in shard.members] == [0, 1, 2, 0, 1, 2, 0]
    assert (shard.problem, shard.unpaired) == (None, 0)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_formats_and_long_names_are_read(tmp_path: Path, kind: int) -> None:
    name = "/".join(["folder" * 4] * 5) if kind != tarfile.USTAR_FORMAT else "folder"
    images = [(f"{name}/ü{i}" if kind != tarfile.USTAR_FORMAT else f"{name}/{i}", d, y) for i, d, y in noise(4)]
    path = write_shard(tmp_path / "a.tar", images, format=kind)
    shard = scan_shard(path)
    assert [member.name for member in shard.members] == [f"{image[0]}.png" for image in images]
    contents = path.read_bytes()
    assert [contents[m.offset : m.offset + m.size] for m in shard.members] == [data for _, data, _ in images]


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs the program tar")
def test_shard_of_the_program_tar_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, data, label in noise(3):
        (tmp_path / "in" / f"{name}.png").write_bytes(data)
        (tmp_path / "in" / f"{name}.cls").write_text(str(label))
    subprocess.run(["tar", "cf", tmp_path / "a.tar", "-C", tmp_path / "in", "--sort=name", "."], check=True)
    shard = scan_shard(tmp_path / "a.tar")
    assert [(member.name, member.label) for member in shard.members] == [
        ("./0000.png", 0),
        ("./0001.png", 1),
        ("./0002.png", 2),
    ]
    assert shard.problem is None


@pytest.mark.parametrize(
    ("files", "label"),
    [
        ({"cls": b"3"}, 3),
        ({"cls": b" 12\n"}, 12),
        ({"cls": b"cat"}, "cat"),
        ({"cls": b"007"}, "007"),
        ({"txt": "Käfer\n".encode()}, "Käfer"),
        ({"json": b"4"}, 4),
        ({"json": b'"cat"'}, "cat"),
        ({"json": b'{"width": 3, "label": 5}'}, 5),
        ({"json": b'{"class": "cat"}'}, "cat"),
        ({"txt": b"a photo of a cat", "cls": b"2", "json": b"{}"}, 2),
        ({}, None),
        ({"json": b"null"}, None),
    ],
)
def test_label_is_read_from_the_files_beside_the_image(
    tmp_path: Path, files: dict[str, bytes], label: int | str | None
) -> None:
    path = write_members(tmp_path / "a.tar", [CAT, *((f"a/1.{extension}", data) for extension, data in files.items())])
    assert [member.label for member in scan_shard(path).members] == [label]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a/1.json", b"{", r"a\.tar/a/1\.json: holds no label"),
        ("a/1.cls", b"\xff\xfe", r"a\.tar/a/1\.cls: holds no label"),
        ("a/1.json", b'{"lable": 3}', r"none of the keys label, .*'lable'; did you mean 'lable'"),
        ("a/1.json", b'{"label": 1.5}', "the label is 1.5; it must be a class number or a class name"),
        ("a/1.json", b'{"label": true}', "the label is True"),
        ("a/1.json", b"[1]", r"the label is \[1\]"),
        ("a/1.jpg", encoded(0, "JPEG"), r"the sample 'a/1' has two images, a/1\.png and a/1\.jpg"),
    ],
)
def test_label_that_is_none_is_named(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    path = write_members(tmp_path / "a.tar", [CAT, (name, data)])
    with pytest.raises(DataError, match=says):
        scan_shard(path)


def test_files_of_others_are_passed_over_and_lonely_labels_counted(tmp_path: Path) -> None:
    members = [
        *[CAT, ("a/1.cls", b"0"), ("a/1.seg.png", b"x"), ("a/._1.png", b"x"), ("README", b"x")],
        *[("b/2.cls", b"1"), ("c/3.npy", b"x")],
    ]
    shard = scan_shard(write_members(tmp_path / "a.tar", members))
    assert [member.name for member in shard.members] == ["a/1.png"]
    assert shard.unpaired == 1


def test_cut_off_shard_gives_what_stands_before_the_end(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", noise(9))
    whole = path.read_bytes()
    members = scan_shard(path).members
    for length in range(members[4].offset - 700, members[4].offset + 4000, 256):
        path.write_bytes(whole[:length])
        shard = scan_shard(path)
        assert shard.problem == f"is cut off at byte {length:,}"
        assert shard.members == members[: len(shard.members)]
        # an image counts when its label is there too, one block behind the end of its data
        ends = [-(-(m.offset + m.size) // 512) * 512 for m in members]
        assert len(shard.members) == sum(end + 512 + 1 <= length for end in ends)
    path.write_bytes(whole[: -(-(members[-1].offset + members[-1].size) // 512) * 512 + 1024])  # no end mark
    assert scan_shard(path).problem == f"is cut off at byte {path.stat().st_size:,}"
    assert len(scan_shard(path).members) == 9


def test_damaged_header_is_told_with_its_place(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", noise(9))
    start = scan_shard(path).members[3].offset - 512
    contents = bytearray(path.read_bytes())
    contents[start : start + 100] = b"?" * 100
    path.write_bytes(contents)
    shard = scan_shard(path)
    assert shard.problem == f"is damaged at byte {start:,}"
    assert [member.label for member in shard.members] == [0, 1, 2]


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.xyz"])
def test_compressed_shard_is_refused_by_its_first_bytes(tmp_path: Path, mode: str, name: str) -> None:
    path = write_shard(tmp_path / name, noise(2), mode=mode)
    with pytest.raises(DataError, match=r"is compressed, .* unpack it to a plain \.tar"):
        scan_shard(path)


@pytest.mark.parametrize("contents", [b"", b"hello", b"hello" * 1000])
def test_other_files_are_no_tar_files(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(contents)
    with pytest.raises(DataError, match=r"a\.tar: is not a tar file .* Copy it again"):
        scan_shard(tmp_path / "a.tar")


def test_index_gives_the_same_as_the_headers_without_opening_the_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [write_shard(tmp_path / f"{i}.tar", noise(4, 10 * i)) for i in range(3)]
    write_members(tmp_path / "3.tar", [("\udce9/1.png", encoded(0)), ("\udce9/1.cls", "é\n".encode())])
    files.append(tmp_path / "3.tar")
    scanned = [scan_shard(file) for file in files]
    assert read_index(tmp_path) is None
    write_index(tmp_path, scanned)
    monkeypatch.setattr("fullfield.data.tar_index.scan_shard", None)
    assert shards_of(tmp_path, files) == (scanned, [])


def test_stale_part_of_an_index_is_read_again_and_renewed(tmp_path: Path) -> None:
    files = [write_shard(tmp_path / f"{i}.tar", noise(4, 10 * i)) for i in range(3)]
    write_index(tmp_path, map(scan_shard, files))
    write_shard(files[1], noise(9))
    os.utime(files[2], (1, 1))
    shards, notes = shards_of(tmp_path, files)
    assert [len(shard.members) for shard in shards] == [4, 9, 4]
    assert notes == [f"{tmp_path / INDEX} did not fit 2 of 3 shards, whose headers were read again; it was renewed."]
    assert shards_of(tmp_path, files) == (shards, [])


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"format": "other 1", "shards": {}}',
        b'{"format": "fullfield shards 1"}',
        b'{"format": "fullfield shards 1", "shards": {"0.tar": 3}}',
        b'{"format": "fullfield shards 1", "shards": []}',
    ],
)
def test_damaged_index_is_passed_over(tmp_path: Path, contents: bytes) -> None:
    file = write_shard(tmp_path / "0.tar", noise(4))
    (tmp_path / INDEX).write_bytes(contents)
    shards, notes = shards_of(tmp_path, [file])
    assert shards == [scan_shard(file)]
    assert "did not fit 1 of 1 shards" in notes[0]
    assert read_index(tmp_path) == {"0.tar": shards[0]}


@pytest.mark.parametrize(
    "member", [["a", -1, 5, 0], ["a", 0, 10**9, 0], ["a", "0", 5, 0], ["a", 0, 5], ["a", 0, 5, 1.5]]
)
def test_index_with_impossible_places_is_passed_over(tmp_path: Path, member: list[object]) -> None:
    file = write_shard(tmp_path / "0.tar", noise(4))
    write_index(tmp_path, [scan_shard(file)])
    document = json.loads((tmp_path / INDEX).read_text())
    document["shards"]["0.tar"]["members"][1] = member
    (tmp_path / INDEX).write_text(json.dumps(document))
    assert shards_of(tmp_path, [file])[0] == [scan_shard(file)]


def test_index_that_can_not_be_renewed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object) -> None:
        raise RunError(f"{path} can't be written (permission denied)")

    file = write_shard(tmp_path / "0.tar", noise(4))
    (tmp_path / INDEX).write_text("{")
    monkeypatch.setattr("fullfield.data.tar_index.write_json", refuse)
    shards, notes = shards_of(tmp_path, [file])
    assert len(shards[0].members) == 4
    assert "it was not renewed" in notes[0]


def test_cut_off_shard_is_never_indexed(tmp_path: Path) -> None:
    file = write_shard(tmp_path / "0.tar", noise(4))
    file.write_bytes(file.read_bytes()[:3000])
    write_index(tmp_path, [scan_shard(file)])
    shards, notes = shards_of(tmp_path, [file])
    assert shards[0].problem == "is cut off at byte 3,000"
    assert notes == []
