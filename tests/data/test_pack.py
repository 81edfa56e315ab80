from __future__ import annotations

import csv
import errno
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fullfield
from fullfield.data import ImageData, open_sample, read_image, read_image_data, read_sample
from fullfield.data import pack as module
from fullfield.data.pack import PackResult, pack, parse_size
from fullfield.errors import ConfigError, DataError, MissingExtraError, RunError
from tests.data.archive_files import CLASSES, encoded, noise, write_folder

Contents = dict[str, list[tuple[str, bytes]]]


def contents(data: ImageData) -> Contents:
    """Return class and bytes of all images, sorted, by split."""
    found: Contents = {}
    for split, samples in data.splits.items():
        found[split] = []
        for sample in samples:
            with open_sample(sample) as stream:
                found[split].append((data.classes[sample.label], stream.read()))
        found[split].sort()
    return found


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_folder(tmp_path / "photos" / "train", noise(40))
    return write_folder(tmp_path / "photos" / "test", noise(9, 100)).parent


@pytest.fixture(params=["shards", "parquet"])
def to(request: pytest.FixtureRequest) -> str:
    if request.param == "parquet":
        pytest.importorskip("pyarrow", reason="needs the extra data")
    kind: str = request.param
    return kind


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_packed_data_have_the_same_parts_classes_and_bytes(photos: Path, tmp_path: Path, to: str) -> None:
    done = pack(photos, tmp_path / "out", to=to, images_per_shard=10, seed=3)
    data = read_image_data(tmp_path / "out")
    assert isinstance(done, PackResult)
    assert contents(data) == contents(read_image_data(photos, seed=3))
    assert (data.classes, data.notes) == (CLASSES, ())
    assert done.images == 49
    assert (done.continued, done.bad) == (0, ())
    assert done.bytes == sum(path.stat().st_size for path in done.archives)
    assert "training images were set aside" in done.notes[0]


def test_packing_is_mirrored_at_the_top() -> None:
    assert fullfield.pack is pack


def test_shards_are_what_tarfile_and_webdataset_s_convention_expect(photos: Path, tmp_path: Path) -> None:
    done = pack(photos, tmp_path / "out", images_per_shard=12)
    train = [path for path in done.archives if path.name.startswith("train")]
    assert [path.name for path in train] == [f"train-{number:06}.tar" for number in range(3)]
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == list(CLASSES)
    with tarfile.open(train[0]) as tar:
        names = tar.getnames()
        for image, label in zip(names[::2], names[1::2], strict=True):
            key, _, extension = image.rpartition(".")
            assert (extension, label) == ("png", f"{key}.cls")
            assert "." not in key
            number = int(tar.extractfile(label).read())  # type: ignore[union-attr]
            original = photos / "train" / CLASSES[number] / f"{key.split('/')[1]}.png"
            assert tar.extractfile(image).read() == original.read_bytes()  # type: ignore[union-attr]
            assert key.split("/")[0] == CLASSES[number].replace(".", "_")


def test_every_shard_has_some_of_each_class_and_the_seed_decides_which(photos: Path, tmp_path: Path) -> None:
    first = pack(photos, tmp_path / "a", images_per_shard=12)
    data = read_image_data(tmp_path / "a")
    blocks = data.blocks("train")
    assert blocks is not None
    assert all({data.splits["train"][i].label for i in block} == {0, 1, 2} for block in blocks)
    pack(photos, tmp_path / "b", images_per_shard=12)
    pack(photos, tmp_path / "c", images_per_shard=12, seed=1)
    tars = {path.name for path in first.archives}
    a, b, c = ({name: data for name, data in listing(tmp_path / x).items() if name in tars} for x in "abc")
    assert a == b != c


def test_shard_size_is_about_what_was_asked_for(tmp_path: Path, to: str) -> None:
    write_folder(tmp_path / "photos", noise(300))
    done = pack(tmp_path / "photos", tmp_path / "out", to=to, shard_size="100KB", val_share=0.1)
    sizes = [path.stat().st_size for path in done.archives if path.name.startswith("train")]
    assert len(sizes) > 3
    assert all(60_000 < size < 140_000 for size in sizes)


@pytest.mark.parametrize(
    ("size", "count"),
    [("256MB", 256 * 10**6), ("1.5 GiB", 3 * 2**29), ("10kb", 10**4), (512, 512), ("512", 512), ("7 MiB", 7 * 2**20)],
)
def test_sizes_are_understood(size: str | int, count: int) -> None:
    assert parse_size(size) == count


@pytest.mark.parametrize("size", ["", "MB", "12 parsecs", "-3MB", "0", "0.1", -5])
def test_impossible_sizes_are_refused(size: str | int) -> None:
    with pytest.raises(ConfigError, match="give bytes, or a number with KB, MB or GB, such as 256MB"):
        parse_size(size)


def test_images_of_one_name_stay_apart(tmp_path: Path) -> None:
    for number, name in enumerate(["a/1.png", "a/x/1.png", "a/1.v2.png", "a/1_v2.png", "b/1.png", "b/\udce9 .png"]):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
    pack(tmp_path / "photos", tmp_path / "out")
    assert contents(read_image_data(tmp_path / "out")) == contents(read_image_data(tmp_path / "photos"))


def test_larger_images_are_reduced_and_others_copied(tmp_path: Path, to: str) -> None:
    images = [("small", encoded(0, size=(30, 32)), 0), ("wide", encoded(1, size=(50, 100)), 0)]
    write_folder(tmp_path / "photos", [*images, *((name, data, 1) for name, data, _ in images)])
    pack(tmp_path / "photos", tmp_path / "out", to=to, max_side=32, val_share=0.5)
    data = read_image_data(tmp_path / "out")
    for samples in data.splits.values():
        for sample in samples:
            with open_sample(sample) as stream:
                found = stream.read()
            image = read_sample(sample)
            if found == encoded(0, size=(30, 32)):
                continue
            assert (image.size, Image.open(io.BytesIO(found)).format) == ((32, 16), "JPEG")
            expected = read_image(tmp_path / "photos" / CLASSES[0] / "wide.png")
            expected = expected.resize((32, 16), Image.Resampling.LANCZOS)
            difference = np.asarray(image, np.float64) - np.asarray(expected, np.float64)
            assert np.abs(difference).mean() < 6  # JPEG of noise, quality 95


def damaged(photos: Path) -> dict[str, Path]:
    paths = sorted((photos / "train" / "ant").iterdir())[:3]
    paths[0].write_bytes(b"")
    paths[1].write_bytes(paths[1].read_bytes()[:300])
    paths[2].unlink()
    paths[2].symlink_to(photos / "nowhere")
    return dict(zip(["empty", "cut off", "gone"], paths, strict=True))


def rows(path: Path) -> dict[str, tuple[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row["path"]: (row["action"], row["reason"]) for row in csv.DictReader(file)}


def list_of(photos: Path) -> Path:
    """Write a CSV list, whose reader sees the damage of a file no sooner than `pack`."""
    lines = [f"{path.relative_to(photos)},{path.parent.name},train" for path in sorted(photos.rglob("train/*/*"))]
    lines += [f"{path.relative_to(photos)},{path.parent.name},val" for path in sorted(photos.rglob("test/*/*"))]
    (photos / "list.csv").write_text("\n".join(["path,label,split", *lines]))
    return photos / "list.csv"


def test_checking_leaves_damaged_images_out_and_names_them(photos: Path, tmp_path: Path, to: str) -> None:
    bad = damaged(photos)
    done = pack(photos, tmp_path / "out", to=to, check=True, images_per_shard=10)
    found = rows(tmp_path / "out" / "unreadable.csv")
    assert found.keys() == {str(bad["empty"]), str(bad["cut off"])}  # the folder's reader passes over broken links
    assert {action for action, _ in found.values()} == {"left out"}
    assert found[str(bad["empty"])][1].startswith("is empty")
    assert found[str(bad["cut off"])][1].startswith("is damaged or cut off")
    assert done.images == 46
    assert {entry.path for entry in done.bad} == found.keys()
    data = read_image_data(tmp_path / "out")
    assert sum(map(len, data.splits.values())) == 46
    for samples in data.splits.values():
        for sample in samples:
            read_sample(sample)


def test_without_checking_damaged_images_are_copied_as_they_are(photos: Path, tmp_path: Path, to: str) -> None:
    damaged(photos)
    done = pack(photos, tmp_path / "out", to=to)
    assert (done.images, done.bad) == (48, ())
    assert contents(read_image_data(tmp_path / "out")) == contents(read_image_data(photos))


def test_images_that_can_not_be_copied_are_named_without_checking(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = read_image_data(list_of(photos))
    bad = damaged(photos)
    monkeypatch.setattr(module, "read_image_data", lambda *_, **__: data)  # as if it went away during the packing
    done = pack(photos / "list.csv", tmp_path / "out")
    assert [(entry.path, entry.action) for entry in done.bad] == [(str(bad["gone"]), "left out")]
    assert done.images == 48
    assert rows(tmp_path / "out" / "unreadable.csv").keys() == {str(bad["gone"])}


def test_images_that_can_not_be_reduced_are_copied_and_named(photos: Path, tmp_path: Path) -> None:
    bad = damaged(photos)
    done = pack(photos, tmp_path / "out", max_side=8)
    assert {(entry.path, entry.action) for entry in done.bad} == {
        (str(bad["empty"]), "copied"),
        (str(bad["cut off"]), "copied"),
    }
    assert done.images == 48


class Stopped(BaseException):
    """As a signal would."""


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> None:
    """Let the writing of the archive of that number fail in its middle."""
    write, calls = module.write_tar, []

    def fail(path: Path, records: Any) -> None:
        calls.append(path)
        if len(calls) == number:
            write(path, (next(iter(records)) for _ in range(1)))
            raise error
        write(path, records)

    monkeypatch.setattr(module, "write_tar", fail)


def test_stopped_packing_continues_with_what_is_missing_and_ends_the_same(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged(photos)
    options: dict[str, Any] = {"images_per_shard": 8, "check": True}
    pack(photos, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        stop_at(patch, 4, Stopped())
        with pytest.raises(Stopped):
            pack(photos, tmp_path / "out", **options)
    with pytest.raises(DataError, match="was not packed to its end"):
        read_image_data(tmp_path / "out")
    (tmp_path / "out" / ".train-000003.tar.1.partial").touch()  # a process that was killed leaves it
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert len(before) == 3
    done = pack(photos, tmp_path / "out", **options)
    assert done.continued == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before
    whole, out = listing(tmp_path / "whole"), listing(tmp_path / "out")
    for name in ("index.json",):  # it has times of change
        assert [len(s["members"]) for s in json.loads(whole.pop(name))["shards"].values()] == [
            len(s["members"]) for s in json.loads(out.pop(name))["shards"].values()
        ]
    assert rows(tmp_path / "whole" / "unreadable.csv") == rows(tmp_path / "out" / "unreadable.csv")
    whole.pop("unreadable.csv"), out.pop("unreadable.csv")
    assert out == whole
    assert pack(photos, tmp_path / "out", **options).continued == len(done.archives)


def test_full_disk_is_said_and_loses_nothing(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 3, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(RunError, match=r"the disk is full, .*train-000002\.tar was not written"):
            pack(photos, tmp_path / "out", images_per_shard=8)
    assert [path.name for path in sorted((tmp_path / "out").glob("*tar*"))] == ["train-000000.tar", "train-000001.tar"]
    assert not list((tmp_path / "out").glob(".*"))
    assert pack(photos, tmp_path / "out", images_per_shard=8).continued == 2


def test_another_list_or_other_options_are_not_mixed_in(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(photos, out, images_per_shard=8)
    before = listing(out)
    for options, names in (
        ({"seed": 1}, "the list of images|seed"),
        ({"max_side": 8}, "max_side"),
        ({"images_per_shard": 9}, "size"),
        ({"check": True}, "check"),
    ):
        with pytest.raises(RunError, match=rf"holds a pack of other data or with other options \(.*({names})"):
            pack(photos, out, **{"images_per_shard": 8, **options})  # type: ignore[arg-type]
    os.utime(photos / "train" / "ant" / "0000.png", (1, 1))
    with pytest.raises(RunError, match=r"\(the list of images\); choose another folder"):
        pack(photos, out, images_per_shard=8)
    assert listing(out) == before


def test_folder_that_holds_something_else_is_left_alone(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="out exists and is not a pack of Fullfield's; choose another folder"):
        pack(photos, tmp_path / "out")
    with pytest.raises(RunError, match="exists and is not a pack"):
        pack(photos, tmp_path / "out" / "notes.txt")
    assert listing(tmp_path / "out") == {"notes.txt": b"mine"}
    (tmp_path / "out" / "pack.json").write_text("[]")
    with pytest.raises(RunError, match="exists and is not a pack"):
        pack(photos, tmp_path / "out")


def test_output_inside_the_data_is_refused(photos: Path) -> None:
    for out in (photos, photos / "packed", photos / "train" / ".." / "x"):
        with pytest.raises(RunError, match=r"lies inside the data .* choose a folder outside"):
            pack(photos, out)
    assert not (photos / "packed").exists()


def test_data_without_a_readable_image_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "photos", [(name, b"", label) for name, _, label in noise(12)])
    with pytest.raises(DataError, match=r"not one of its 12 images can be read; see .*unreadable\.csv"):
        pack(tmp_path / "photos", tmp_path / "out", check=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"to": "shard"}, "to is 'shard'; did you mean 'shards'.* Use one of shards, parquet"),
        ({"images_per_shard": 0}, "images_per_shard must be at least 1, got 0"),
        ({"max_side": 0}, "max_side must be at least 1, got 0"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"shard_size": "big"}, "shard_size is 'big'"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_written(
    photos: Path, tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        pack(photos, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_without_pyarrow_parquet_names_the_extra(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr("fullfield.data.columns.import_module", refuse)
    with pytest.raises(MissingExtraError, match=r"pip install 'fullfield\[data\]'"):
        pack(photos, tmp_path / "out", to="parquet")
    assert not (tmp_path / "out").exists()
    assert pack(photos, tmp_path / "out").images == 49


def test_sample_that_ships_can_be_packed(tmp_path: Path) -> None:
    done = pack("sample:blood_cells", tmp_path / "out", check=True)
    assert (done.bad, read_image_data(tmp_path / "out").classes) == ((), ("Platelets", "RBC", "WBC"))


def test_packs_can_be_packed_again(photos: Path, tmp_path: Path, to: str) -> None:
    pack(photos, tmp_path / "a", to=to, images_per_shard=10)
    pack(tmp_path / "a", tmp_path / "b", images_per_shard=30)
    assert contents(read_image_data(tmp_path / "b")) == contents(read_image_data(photos))
