from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from fullfield.data import EpochSampler, SampleKey, Unreadable
from fullfield.data.dense import DensePreprocess
from fullfield.data.segmentation.dataset import SegmentationBatch, SemanticSegmentation, collate_segmentation
from fullfield.data.segmentation.label_maps import SegmentationData, SegmentationSample
from fullfield.data.segmentation.read import read_segmentation_data
from fullfield.data.segmentation.transforms import SegmentationAugment, train_transform_segmentation
from fullfield.errors import ConfigError

BROKEN = {2: "image missing", 3: "image cut", 5: "mask missing", 6: "mask of another size", 7: "mask with value 9"}


@pytest.fixture
def data(tmp_path: Path) -> SegmentationData:
    """Ten images of noise with label maps of 3 classes, of which `BROKEN` says what is wrong."""
    samples = []
    for i in range(10):
        rng = np.random.default_rng(i)
        sample = SegmentationSample(tmp_path / f"{i}.jpg", tmp_path / f"{i}.png")
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(sample.path)
        labels = rng.integers(0, 3, (20, 24), dtype=np.uint8)
        labels[0, 0] = 9 if i == 7 else 255
        Image.fromarray(labels[:, : 12 if i == 6 else 24]).save(sample.mask)
        samples.append(sample)
    samples[2].path.unlink()
    samples[3].path.write_bytes(samples[3].path.read_bytes()[:400])
    samples[5].mask.unlink()
    colours = ((1, 0, 0), (2, 0, 0), (3, 0, 0))
    return SegmentationData("test", ("a", "b", "c"), colours, {"train": tuple(samples), "val": tuple(samples)})


def training_set(data: SegmentationData, seed: int = 0) -> SemanticSegmentation:
    transform = train_transform_segmentation(DensePreprocess(window=16), SegmentationAugment())
    return SemanticSegmentation(data.splits["train"], data, transform, seed=seed)


def test_without_transform_image_and_labels_are_those_of_the_files(data: SegmentationData) -> None:
    image, mask, index = SemanticSegmentation(data.splits["val"], data)[4]
    sample = data.splits["val"][4]
    assert (image.dtype, mask.dtype, index) == (torch.float32, torch.int64, 4)
    assert np.array_equal((image * 255).round().permute(1, 2, 0).numpy(), np.asarray(Image.open(sample.path)))
    assert np.array_equal(mask.numpy(), np.asarray(Image.open(sample.mask)))


def test_grey_reading_gives_one_channel(data: SegmentationData) -> None:
    image, _, _ = SemanticSegmentation(data.splits["val"], data, channels=1)[0]
    expected = np.asarray(Image.open(data.splits["val"][0].path).convert("L"))
    assert np.array_equal((image[0] * 255).round().numpy(), expected)
    assert len(image) == 1
    with pytest.raises(ConfigError, match="channels is 2"):
        SemanticSegmentation(data.splits["val"], data, channels=2)


def test_what_cannot_be_used_is_returned_with_file_and_reason(data: SegmentationData) -> None:
    found = SemanticSegmentation(data.splits["train"], data)
    reasons = {i: item for i in range(10) if isinstance(item := found[i], Unreadable)}
    assert reasons.keys() == BROKEN.keys()
    names = {i: Path(item.path).name for i, item in reasons.items()}
    assert names == {2: "2.jpg", 3: "3.jpg", 5: "5.png", 6: "6.png", 7: "7.png"}
    assert "does not exist" in reasons[2].reason
    assert "cut off" in reasons[3].reason
    assert "no such file" in reasons[5].reason
    assert "has 12 x 20 pixels, but its picture has 24 x 20" in reasons[6].reason
    assert "the value 9 at x=0, y=0 is of no class" in reasons[7].reason
    assert not any(item.reason.startswith(item.path) for item in reasons.values())


def test_batch_holds_what_is_readable_and_lists_the_rest(data: SegmentationData) -> None:
    found = training_set(data)
    batch = collate_segmentation([found[SampleKey(0, i)] for i in range(10)])
    assert batch.images.shape == (5, 3, 16, 16)
    assert batch.masks.shape == (5, 16, 16)
    assert batch.indices.tolist() == [0, 1, 4, 8, 9]
    assert len(batch.unreadable) == 5
    assert set(batch.masks.unique().tolist()) <= {0, 1, 2, 255}


def test_batch_of_nothing_readable_is_empty(data: SegmentationData) -> None:
    batch = collate_segmentation([training_set(data)[2]])
    assert (len(batch.images), len(batch.masks), len(batch.indices), len(batch.unreadable)) == (0, 0, 0, 1)


def test_batch_of_several_sizes_is_refused_with_the_sizes(data: SegmentationData) -> None:
    image, mask, index = SemanticSegmentation(data.splits["val"], data)[0]
    with pytest.raises(ConfigError, match=r"images of a batch have the sizes \[\(20, 23\), \(20, 24\)\]"):
        collate_segmentation([(image, mask, index), (image[..., 1:], mask[..., 1:], index)])


def same(a: SegmentationBatch, b: SegmentationBatch) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.masks, b.masks) and a.unreadable == b.unreadable


def test_augmentation_is_a_function_of_seed_epoch_index_and_copy(data: SegmentationData) -> None:
    found = training_set(data)

    def one(key: SampleKey, of: SemanticSegmentation = found) -> SegmentationBatch:
        return collate_segmentation([of[key]])

    before = torch.default_generator.get_state()
    first = one(SampleKey(0, 4))
    assert torch.equal(torch.default_generator.get_state(), before)
    torch.rand(5)
    assert same(first, one(SampleKey(0, 4)))
    for other in (one(SampleKey(1, 4)), one(SampleKey(0, 4, 1)), one(SampleKey(0, 4), training_set(data, seed=1))):
        assert not same(first, other)


def test_workers_do_not_change_an_epoch(data: SegmentationData) -> None:
    epochs = []
    for workers in (0, 2):
        loader = DataLoader(
            training_set(data),
            4,
            sampler=EpochSampler(10, shuffle=True, seed=0),
            num_workers=workers,
            collate_fn=collate_segmentation,
            multiprocessing_context="fork" if workers else None,
        )
        epochs.append(list(loader))
    assert all(same(a, b) for a, b in zip(*epochs, strict=True))


def test_dataset_can_be_sent_to_workers_that_are_not_forked(data: SegmentationData) -> None:
    found = training_set(data)
    again = pickle.loads(pickle.dumps(found))  # noqa: S301 - our own bytes
    key = SampleKey(3, 1)
    assert same(collate_segmentation([found[key]]), collate_segmentation([again[key]]))


def test_camvid_batches_hold_its_classes(shared_data: Path) -> None:
    data = read_segmentation_data(shared_data / "camvid11")
    transform = train_transform_segmentation(DensePreprocess(window=128), SegmentationAugment())
    found = SemanticSegmentation(data.splits["train"], data, transform)
    batch = collate_segmentation([found[SampleKey(0, i)] for i in range(0, 367, 60)])
    assert batch.images.shape == (7, 3, 128, 128)
    assert not batch.unreadable
    assert set(batch.masks.unique().tolist()) <= {*range(11), 255}
    assert len(batch.masks.unique()) > 5
    image, mask, _ = SemanticSegmentation(data.splits["test"], data)[0]
    assert (image.shape, mask.shape) == ((3, 360, 480), (360, 480))
