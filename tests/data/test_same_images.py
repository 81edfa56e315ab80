"""One data set as a folder, as shards, as Parquet files and as a saved Hugging Face data set: the same in every bit."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fullfield.data import (
    Augment,
    EpochSampler,
    ImageClassification,
    ImageData,
    Preprocess,
    collate,
    read_image_data,
    train_transform,
)
from tests.data.archive_files import (
    hub_table,
    noise,
    write_class_names,
    write_folder,
    write_parquet,
    write_saved,
    write_shard,
)

TRAIN, VAL = sorted(noise(48), key=lambda image: image[2]), sorted(noise(9, 100), key=lambda image: image[2])
TRANSFORM = train_transform(Preprocess(image_size=16), Augment(vflip=True, rand_augment=10, erasing=0.5))
KINDS = ["folder", "shards", "parquet", "arrow"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageData]:
    """The same images in the order of the folder's reader, in four kinds of storage."""
    pytest.importorskip("pyarrow", reason="needs the extra data")
    root = tmp_path_factory.mktemp("same")
    for split, images in (("train", TRAIN), ("val", VAL)):
        write_folder(root / "folder" / split, images)
        for number in range(0, len(images), 7):
            some = images[number : number + 7]
            write_shard(root / "shards" / f"{split}-{number:06}.tar", some)
            write_parquet(root / "parquet" / f"{split}-{number:06}.parquet", hub_table(some))
    write_class_names(root / "shards")
    write_saved(root / "arrow", {"train": TRAIN, "validation": VAL})
    return {kind: read_image_data(root / kind) for kind in KINDS}


def epoch(data: ImageData, number: int, rank: int = 0, world_size: int = 1, start: int = 0) -> EpochSampler:
    """Return the sampler of an epoch, from a position on; archives are shuffled by their blocks."""
    blocks = data.blocks("train")
    sampler = EpochSampler(48, shuffle=True, seed=1, rank=rank, world_size=world_size, blocks=blocks)
    sampler.start_at(number, start)
    return sampler


def load(data: ImageData, keys: EpochSampler, workers: int) -> list[tuple[int, int, Tensor]]:
    """Return (index, label, image) of each item in the order in which the loader gives them."""
    dataset = ImageClassification(data.splits["train"], TRANSFORM, seed=5)
    context = "fork" if workers else None
    loader = DataLoader(
        dataset, 4, sampler=keys, num_workers=workers, collate_fn=collate, multiprocessing_context=context
    )
    items = []
    for batch in loader:
        assert batch.unreadable == ()
        items += list(zip(batch.indices.tolist(), batch.labels.tolist(), batch.images, strict=True))
    return items


def assert_same(found: list[tuple[int, int, Tensor]], expected: list[tuple[int, int, Tensor]]) -> None:
    assert [item[:2] for item in found] == [item[:2] for item in expected]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(found, expected, strict=True))


def test_all_kinds_have_the_same_classes_parts_and_labels(data: dict[str, ImageData]) -> None:
    for kind in KINDS:
        assert data[kind].classes == data["folder"].classes
        for split in ("train", "val"):
            labels = [sample.label for sample in data[kind].splits[split]]
            assert labels == [sample.label for sample in data["folder"].splits[split]]


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_of_augmented_images_is_the_folder_s_bit_for_bit(
    data: dict[str, ImageData], kind: str, workers: int
) -> None:
    keys = epoch(data["folder"], 2)
    assert_same(load(data[kind], keys, workers), load(data["folder"], keys, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_of_two_workers_see_each_image_once(data: dict[str, ImageData], kind: str) -> None:
    ranks = [load(data[kind], epoch(data[kind], 0, rank, 2), 2) for rank in range(2)]
    seen = [item[0] for rank in ranks for item in rank]
    assert sorted(seen) == list(range(48))
    alone = {item[0]: item for item in load(data["folder"], epoch(data["folder"], 0), 0)}
    for rank in ranks:
        assert_same(rank, [alone[item[0]] for item in rank])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [1, 17, 47])
def test_resuming_at_a_position_gives_the_rest_of_the_epoch(data: dict[str, ImageData], kind: str, start: int) -> None:
    whole = load(data[kind], epoch(data[kind], 3), 0)
    assert_same(load(data[kind], epoch(data[kind], 3, start=start), 2 if start == 17 else 0), whole[start:])


@pytest.mark.parametrize("kind", KINDS)
def test_lists_survive_pickling_to_a_worker(data: dict[str, ImageData], kind: str) -> None:
    again: ImageData = pickle.loads(pickle.dumps(data[kind]))  # noqa: S301
    assert again == data[kind]
    keys = epoch(data["folder"], 0, start=40)
    assert_same(load(again, keys, 0), load(data["folder"], keys, 0))


def test_blocks_are_the_shards_row_groups_and_batches(data: dict[str, ImageData]) -> None:
    counts = {kind: None if (blocks := data[kind].blocks("train")) is None else len(blocks) for kind in KINDS}
    assert counts == {"folder": None, "shards": 7, "parquet": 14, "arrow": 12}


def test_paths_to_show_name_the_archive_and_the_place_in_it(data: dict[str, ImageData]) -> None:
    shown = {kind: Path(*data[kind].splits["train"][8].path.parts[-2:]).as_posix() for kind in KINDS}
    assert shown == {
        "folder": "ant/0024.png",
        "shards": "train-000007.tar/0024.png",
        "parquet": "train-000007.parquet/1",
        "arrow": "data-00000-of-00001.arrow/8",
    }
