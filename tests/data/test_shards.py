from __future__ import annotations

import json
from pathlib import Path

import pytest

from fullfield.data import open_sample, read_shards
from fullfield.errors import DataError
from tests.data.archive_files import CLASSES, encoded, noise, write_class_names, write_members, write_shard


def shards(root: Path, count: int = 3, each: int = 10) -> Path:
    for number in range(count):
        write_shard(root / f"train-{number:06}.tar", noise(each, number * each))
    write_shard(root / "val-000000.tar", noise(6, 900))
    write_class_names(root)
    return root


def test_shards_hold_their_images_in_order_with_names_and_labels(tmp_path: Path) -> None:
    data = read_shards(shards(tmp_path))
    assert data.classes == CLASSES
    assert data.notes == ()
    for split, images in (("train", noise(30)), ("val", noise(6, 900))):
        assert [sample.label for sample in data.splits[split]] == [label for _, _, label in images]
        for sample, (_, contents, _) in zip(data.splits[split], images, strict=True):
            with open_sample(sample) as stream:
                assert stream.read() == contents
    assert data.splits["train"][11].path == tmp_path / "train-000001.tar" / "0011.png"


def test_each_shard_is_a_block(tmp_path: Path) -> None:
    data = read_shards(shards(tmp_path))
    assert data.blocks("train") == (range(10), range(10, 20), range(20, 30))
    assert data.blocks("val") == (range(6),)


def test_blocks_are_those_that_are_left_when_a_validation_part_was_cut(tmp_path: Path) -> None:
    shards(tmp_path)
    (tmp_path / "val-000000.tar").unlink()
    data = read_shards(tmp_path, val_share=0.3)
    for split in ("train", "val"):
        blocks = data.blocks(split)
        assert blocks is not None
        held = [{data.splits[split][i].path.parent.name for i in block} for block in blocks]
        assert held == [{f"train-{number:06}.tar"} for number in range(3)]


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("classes.json", json.dumps(CLASSES)),
        ("classes.json", json.dumps({name: number for number, name in enumerate(CLASSES)})),
        ("classes.json", json.dumps({name: str(number) for number, name in enumerate(CLASSES)})),
        ("classes.txt", "\ufeff" + "\n".join(CLASSES)),
        ("classes.txt", "\r\n".join(CLASSES) + "\r\n"),
    ],
)
def test_names_of_the_classes_may_stand_in_either_file(tmp_path: Path, name: str, contents: str) -> None:
    write_shard(tmp_path / "0.tar", noise(12))
    (tmp_path / name).write_text(contents, encoding="utf-8", newline="")
    assert read_shards(tmp_path).classes == CLASSES


@pytest.mark.parametrize(
    ("name", "contents", "says"),
    [
        ("classes.json", "{", r"classes\.json: cannot be read as a list of class names"),
        ("classes.json", '{"a": 0, "b": 2}', "cannot be read as a list"),
        ("classes.json", '{"a": "x"}', "cannot be read as a list"),
        ("classes.json", "3", "expected the class names"),
        ("classes.json", '["a", 3]', "expected the class names"),
        ("classes.txt", "a\n\nb\n", r"classes\.txt: expected the class names in the order of their numbers, none"),
        ("classes.txt", "", r"classes\.txt: expected the class names"),
        ("classes.txt", "a\nb\n", r"0002\.png: the label is 2, but the 2 classes count from 0 to 1"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(tmp_path: Path, name: str, contents: str, says: str) -> None:
    write_shard(tmp_path / "0.tar", noise(12))
    (tmp_path / name).write_text(contents)
    with pytest.raises(DataError, match=says):
        read_shards(tmp_path)


def test_unknown_class_name_in_a_label_names_the_nearest(tmp_path: Path) -> None:
    write_members(tmp_path / "0.tar", [("1.png", encoded(0)), ("1.txt", b"ants"), ("2.png", b""), ("2.txt", b"bee")])
    write_class_names(tmp_path)
    with pytest.raises(DataError, match=r"0\.tar/1\.png: the label 'ants' is not among .* did you mean 'ant'"):
        read_shards(tmp_path)


def test_without_class_names_the_labels_name_the_classes(tmp_path: Path) -> None:
    members = [pair for i in range(8) for pair in ((f"{i}.jpg", b"x"), (f"{i}.txt", b"dog" if i % 2 else b"cat"))]
    write_members(tmp_path / "0.tar", members)
    assert read_shards(tmp_path).classes == ("cat", "dog")


def test_missing_label_is_refused_with_its_image(tmp_path: Path) -> None:
    members = [("1.png", b"x"), ("1.cls", b"0"), ("2.png", b"x"), ("3.png", b"x"), ("3.cls", b"1")]
    write_members(tmp_path / "0.tar", members)
    with pytest.raises(DataError, match=r"1 image without a label: '.*0\.tar/2\.png'"):
        read_shards(tmp_path)


def test_tar_file_of_an_image_folder_is_told_how_to_become_shards(tmp_path: Path) -> None:
    write_members(tmp_path / "0.tar", [("cat/1.png", b"x"), ("dog/1.png", b"x")])
    with pytest.raises(DataError, match=r"images without labels\. Expected .* unpack it; `fullfield pack`"):
        read_shards(tmp_path)


def test_shards_without_images_are_refused(tmp_path: Path) -> None:
    write_members(tmp_path / "0.tar", [])
    with pytest.raises(DataError, match="holds no images to train on"):
        read_shards(tmp_path)


def test_cut_off_shard_is_named_and_what_is_left_of_it_is_used(tmp_path: Path) -> None:
    shards(tmp_path)
    path = tmp_path / "train-000001.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    data = read_shards(tmp_path)
    assert data.notes[0].startswith(f"{path} is cut off at byte {path.stat().st_size:,}: the 6 images before that")
    assert len(data.splits["train"]) == 26


def test_lonely_labels_are_counted(tmp_path: Path) -> None:
    shards(tmp_path)
    write_members(tmp_path / "train-000009.tar", [("a.cls", b"0"), ("b.cls", b"0")])
    assert read_shards(tmp_path).notes == ("Labels in shards ignored because they have no image: 2.",)


def test_shard_that_is_no_tar_file_is_refused(tmp_path: Path) -> None:
    shards(tmp_path)
    (tmp_path / "train-000001.tar").write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(DataError, match=r"train-000001\.tar: is not a tar file"):
        read_shards(tmp_path)


def test_unfinished_and_damaged_packs_are_refused(tmp_path: Path) -> None:
    shards(tmp_path)
    (tmp_path / "pack.json").write_text('{"finished": false}')
    with pytest.raises(DataError, match=r"was not packed to its end\. Run the same `fullfield pack` again"):
        read_shards(tmp_path)
    (tmp_path / "pack.json").write_text("{")
    with pytest.raises(DataError, match=r"pack\.json: cannot be read"):
        read_shards(tmp_path)
    (tmp_path / "pack.json").write_text('{"finished": true}')
    read_shards(tmp_path)
