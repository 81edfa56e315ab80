from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from fullfield.data import (
    Augment,
    EpochSampler,
    ImageBatch,
    ImageClassification,
    Preprocess,
    Sample,
    SampleKey,
    Unreadable,
    collate,
    eval_transform,
    train_transform,
)
from fullfield.errors import ConfigError

P = Preprocess(image_size=16)
AUGMENT = Augment(vflip=True, rand_augment=10, erasing=0.5)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Ten images of noise, of which number 3 is empty and number 7 missing."""
    found = []
    for i in range(10):
        path = tmp_path / f"{i}.png"
        values = np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(values).save(path)
        found.append(Sample(path, i % 3))
    found[3].path.write_bytes(b"")
    found[7].path.unlink()
    return found


def training_set(samples: list[Sample], seed: int = 0) -> ImageClassification:
    return ImageClassification(samples, train_transform(P, AUGMENT), seed=seed)


def image_of(data: ImageClassification, key: int | SampleKey) -> torch.Tensor:
    item = data[key]
    assert not isinstance(item, Unreadable)
    return item[0]


def epoch_of(samples: list[Sample], workers: int, batch_size: int, epoch: int) -> dict[int, torch.Tensor]:
    sampler = EpochSampler(len(samples), shuffle=True, seed=0)
    sampler.set_epoch(epoch)
    loader = DataLoader(
        training_set(samples),
        batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        multiprocessing_context="fork" if workers else None,
    )
    return {int(i): image for batch in loader for i, image in zip(batch.indices, batch.images, strict=True)}


def test_item_is_the_transformed_image_with_label_and_position(samples: list[Sample]) -> None:
    transform = eval_transform(P)
    data = ImageClassification(samples, transform)
    assert len(data) == 10
    image, label, index = data[4]
    assert torch.equal(image, transform(Image.open(samples[4].path).convert("RGB")))
    assert (label, index) == (1, 4)
    assert data[SampleKey(9, 4)][1:] == (1, 4)


def test_position_beyond_the_end_is_an_index_error(samples: list[Sample]) -> None:
    with pytest.raises(IndexError):
        ImageClassification(samples, eval_transform(P))[10]


def test_unreadable_image_is_returned_with_path_and_reason(samples: list[Sample]) -> None:
    data = ImageClassification(samples, eval_transform(P))
    item = data[SampleKey(0, 3)]
    assert isinstance(item, Unreadable)
    assert item.path == str(samples[3].path)
    assert item.reason.startswith("is empty (0 bytes)")
    assert data[7].reason.startswith("does not exist")


def test_min_side_reaches_the_decoder(tmp_path: Path) -> None:
    Image.new("RGB", (800, 640)).save(tmp_path / "a.jpg")
    sizes = []

    def transform(image: Image.Image) -> torch.Tensor:
        sizes.append(image.size)
        return torch.zeros(3, 1, 1)

    ImageClassification([Sample(tmp_path / "a.jpg", 0)], transform, min_side=150)[0]
    assert sizes == [(200, 160)]


def test_augmentation_depends_on_seed_epoch_and_index_alone(samples: list[Sample]) -> None:
    data = training_set(samples)
    first = image_of(data, SampleKey(2, 5))
    torch.rand(100)
    image_of(data, SampleKey(0, 1))
    assert torch.equal(image_of(data, SampleKey(2, 5)), first)
    assert torch.equal(image_of(training_set(samples), SampleKey(2, 5)), first)
    assert not torch.equal(image_of(data, SampleKey(3, 5)), first)
    assert not torch.equal(image_of(training_set(samples, seed=1), SampleKey(2, 5)), first)


def test_two_positions_of_one_image_are_varied_differently(samples: list[Sample]) -> None:
    data = training_set([samples[0], samples[0]])
    assert not torch.equal(image_of(data, SampleKey(0, 0)), image_of(data, SampleKey(0, 1)))


def test_callers_random_state_is_left_as_it_was(samples: list[Sample]) -> None:
    data = training_set(samples)
    torch.manual_seed(3)
    expected = torch.rand(5)
    torch.manual_seed(3)
    image_of(data, SampleKey(0, 0))
    assert torch.equal(torch.rand(5), expected)


def test_callers_random_state_comes_back_even_if_the_transform_fails(samples: list[Sample]) -> None:
    def failing(image: Image.Image) -> torch.Tensor:
        torch.rand(1)
        raise RuntimeError("no")

    torch.manual_seed(3)
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="no"):
        ImageClassification(samples, failing)[SampleKey(0, 0)]
    assert torch.equal(torch.get_rng_state(), state)


def test_plain_index_draws_from_the_callers_generator(samples: list[Sample]) -> None:
    data = training_set(samples)
    torch.manual_seed(0)
    first, second = image_of(data, 0), image_of(data, 0)
    torch.manual_seed(0)
    assert torch.equal(image_of(data, 0), first)
    assert not torch.equal(first, second)


def test_epoch_is_the_same_for_any_number_of_workers_and_batch_size(samples: list[Sample]) -> None:
    expected = epoch_of(samples, workers=0, batch_size=4, epoch=1)
    assert sorted(expected) == [0, 1, 2, 4, 5, 6, 8, 9]
    for workers, batch_size in ((1, 3), (2, 1)):
        images = epoch_of(samples, workers, batch_size, epoch=1)
        assert images.keys() == expected.keys()
        assert all(torch.equal(images[i], expected[i]) for i in expected)
    other = epoch_of(samples, workers=0, batch_size=4, epoch=2)
    assert not any(torch.equal(other[i], expected[i]) for i in expected)


def test_collate_stacks_images_and_lists_unreadable_ones(samples: list[Sample]) -> None:
    data = ImageClassification(samples, eval_transform(P))
    batch = collate([data[i] for i in (5, 3, 1)])
    assert isinstance(batch, ImageBatch)
    assert (batch.images.shape, batch.images.dtype) == ((2, 3, 16, 16), torch.float32)
    assert torch.equal(batch.images[1], image_of(data, 1))
    assert (batch.labels.tolist(), batch.labels.dtype) == ([2, 1], torch.int64)
    assert (batch.indices.tolist(), batch.indices.dtype) == ([5, 1], torch.int64)
    assert [Path(u.path).name for u in batch.unreadable] == ["3.png"]


def test_batch_of_unreadable_images_has_no_rows() -> None:
    batch = collate([Unreadable("a", "x"), Unreadable("b", "y")])
    assert len(batch.images) == len(batch.labels) == len(batch.indices) == 0
    assert batch.images.ndim == 4
    assert (batch.images.dtype, batch.labels.dtype) == (torch.float32, torch.int64)
    assert batch.unreadable == (Unreadable("a", "x"), Unreadable("b", "y"))


def keys(sampler: EpochSampler) -> list[int]:
    found = list(sampler)
    assert len(found) == len(sampler)
    assert {key.epoch for key in found} <= {sampler.epoch}
    return [key.index for key in found]


@given(st.integers(0, 60), st.integers(1, 9))
def test_evaluation_gives_each_index_once_over_all_ranks(length: int, world_size: int) -> None:
    ranks = [
        keys(EpochSampler(length, shuffle=False, seed=0, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert sorted(index for rank in ranks for index in rank) == list(range(length))
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1
    assert all(rank == sorted(rank) for rank in ranks)


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 3), st.integers(0, 3))
def test_training_gives_equal_ranks_and_repeats_no_more_than_it_must(
    length: int, world_size: int, seed: int, epoch: int
) -> None:
    ranks = []
    for rank in range(world_size):
        sampler = EpochSampler(length, shuffle=True, seed=seed, rank=rank, world_size=world_size)
        sampler.set_epoch(epoch)
        ranks.append(keys(sampler))
    assert len({len(rank) for rank in ranks}) == 1
    together = [index for rank in ranks for index in rank]
    assert set(together) == set(range(length))
    assert len(together) - length < world_size


def test_order_depends_on_seed_and_epoch_alone() -> None:
    sampler = EpochSampler(50, shuffle=True, seed=4)
    first = keys(sampler)
    torch.rand(3)
    assert keys(sampler) == first
    sampler.set_epoch(1)
    second = keys(sampler)
    assert second != first
    assert keys(EpochSampler(50, shuffle=True, seed=5)) not in (first, second)
    sampler.set_epoch(0)
    assert keys(sampler) == first


def test_sampler_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    keys(EpochSampler(50, shuffle=True, seed=4))
    assert torch.equal(torch.get_rng_state(), state)


def test_epoch_set_during_an_iteration_counts_from_the_next() -> None:
    sampler = EpochSampler(6, shuffle=True, seed=0)
    iterator = iter(sampler)
    begun = [next(iterator)]
    sampler.set_epoch(1)
    assert {key.epoch for key in [*begun, *iterator]} == {0}


@pytest.mark.parametrize(("rank", "world_size"), [(2, 2), (-1, 2), (0, 0)])
def test_impossible_rank_is_refused(rank: int, world_size: int) -> None:
    with pytest.raises(ConfigError, match=f"rank is {rank} of world_size {world_size}"):
        EpochSampler(5, shuffle=True, seed=0, rank=rank, world_size=world_size)


def test_negative_length_is_refused() -> None:
    with pytest.raises(ConfigError, match="length is -1"):
        EpochSampler(-1, shuffle=True, seed=0)
