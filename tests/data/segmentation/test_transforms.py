from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from fullfield.data.dense import DensePreprocess
from fullfield.data.segmentation.transforms import (
    Crop,
    SegmentationAugment,
    eval_transform_segmentation,
    train_transform_segmentation,
)
from fullfield.errors import ConfigError

STEP = 12  # grey levels between one label and the next
BLOCK = 16  # pixels of one label, in x and in y


def staircase(height: int, width: int) -> tuple[Image.Image, torch.Tensor]:
    """A picture whose grey values are its labels times STEP, rising to the right and to the bottom."""
    y, x = np.mgrid[0:height, 0:width]
    labels = x // BLOCK + y // BLOCK
    assert labels.max() * STEP < 256
    return Image.fromarray((labels * STEP).astype(np.uint8)).convert("RGB"), torch.from_numpy(labels.astype(np.int64))


def test_crop_at_scale_1_shows_in_every_pixel_what_its_label_says() -> None:
    image, mask = staircase(150, 170)
    augment = SegmentationAugment(scale_low=1, scale_high=1, vflip=True, photometric=0)
    transform = train_transform_segmentation(DensePreprocess(window=64), augment)
    seen = set()
    for _ in range(40):
        picture, labels = transform(image, mask)
        assert (picture.shape, labels.shape) == ((3, 64, 64), (64, 64))
        assert (picture.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert torch.equal(torch.round(picture * 255).long(), (labels * STEP).expand(3, 64, 64))
        seen.add((bool(labels[0, 0] < labels[0, -1]), bool(labels[0, 0] < labels[-1, 0])))
    assert len(seen) == 4  # every combination of mirror images came up


@pytest.mark.parametrize("axis", [0, 1])
def test_picture_and_labels_stay_aligned_at_every_scale(axis: int) -> None:
    # At an edge between two labels the pixel belongs to the one that covers its centre, so that the interpolated grey
    # value lies nearer to it. Half a pixel of displacement would break this.
    labels = np.moveaxis(np.tile(np.arange(160) // BLOCK, (160, 1)), 1, axis)
    image = Image.fromarray((labels * STEP).astype(np.uint8)).convert("RGB")
    mask = torch.from_numpy(labels.astype(np.int64))
    transform = train_transform_segmentation(DensePreprocess(window=96), SegmentationAugment(vflip=True, photometric=0))
    for _ in range(40):
        picture, found = transform(image, mask)
        distance = torch.abs(picture * 255 / STEP - found)[:, found != 255]
        assert distance.max() <= 0.5 + 0.51 / STEP  # half a grey level is rounding


@pytest.mark.parametrize("size", [(23, 31), (7, 9), (40, 11)])
def test_crop_equals_resizing_the_whole_and_cutting(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8))
    mask = torch.from_numpy(rng.integers(0, 9, (15, 20)))
    crop = Crop(size, 2, 3, 5, 6)
    whole = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(np.asarray(crop.of_image(image)).astype(int) - whole[2:7, 3:9]).max() <= 1
    exact = F.interpolate(mask[None, None].double(), size, mode="nearest-exact")[0, 0].long()
    assert torch.equal(crop.of_mask(mask), exact[2:7, 3:9])
    for y in range(5):
        for x in range(6):
            row = math.floor((Fraction(2 + y) + Fraction(1, 2)) * 15 / size[0])
            column = math.floor((Fraction(3 + x) + Fraction(1, 2)) * 20 / size[1])
            assert crop.of_mask(mask)[y, x] == mask[row, column]


def test_small_image_is_filled_up_with_the_mean_and_ignored_labels() -> None:
    image, mask = staircase(20, 30)
    preprocess = DensePreprocess(window=40, mean=(0.25, 0.5, 0.75))
    augment = SegmentationAugment(scale_low=1, scale_high=1, hflip=False, photometric=0)
    picture, labels = train_transform_segmentation(preprocess, augment, ignore_index=99)(image, mask)
    assert torch.equal(labels[:20, :30], mask)
    filled = torch.ones(40, 40, dtype=torch.bool)
    filled[:20, :30] = False
    assert (labels[filled] == 99).all()
    assert torch.equal(picture[:, filled], torch.tensor([[0.25], [0.5], [0.75]]).expand(3, int(filled.sum())))


def test_scale_is_relative_to_the_preprocessed_size() -> None:
    image, mask = staircase(100, 150)
    augment = SegmentationAugment(scale_low=0.5, scale_high=0.5, photometric=0)
    _, labels = train_transform_segmentation(DensePreprocess(short_side=60, window=64), augment)(image, mask)
    assert (labels != 255).sum() == 30 * 45


def test_crop_that_one_class_fills_is_drawn_again() -> None:
    mask = torch.zeros(40, 1000, dtype=torch.int64)
    mask[:, 500:] = 1
    mask[0] = 255
    image = Image.new("RGB", (1000, 40))

    def largest_shares(cat_max: float) -> list[float]:
        augment = SegmentationAugment(scale_low=1, scale_high=1, photometric=0, cat_max=cat_max)
        transform = train_transform_segmentation(DensePreprocess(window=200), augment)
        shares = []
        for _ in range(100):
            labels = transform(image, mask)[1]
            counts = torch.bincount(labels[labels != 255], minlength=2)
            shares.append(float(counts.max() / counts.sum()))
        return shares

    # One draw shows both classes below 75 % with probability 100 / 801; eleven do with 1 - (1 - 0.125)^11 = 0.77.
    assert sum(share < 0.75 for share in largest_shares(1.0)) < 30
    assert sum(share < 0.75 for share in largest_shares(0.75)) > 60
    assert torch.equal(torch.tensor(largest_shares(1e-6)) <= 1, torch.ones(100, dtype=torch.bool))  # gives up, and ends


def test_colours_change_without_the_labels_and_channels_keep_their_places() -> None:
    image, mask = Image.new("RGB", (32, 32), (200, 60, 60)), torch.arange(32).expand(32, 32).contiguous()
    augment = SegmentationAugment(scale_low=1, scale_high=1, hflip=False, photometric=1)
    transform = train_transform_segmentation(DensePreprocess(window=32), augment)
    colours = set()
    for _ in range(30):
        picture, labels = transform(image, mask)
        assert torch.equal(labels, mask)
        assert picture.min() >= 0
        assert picture.max() <= 1
        assert int(picture[:, 0, 0].argmax()) == 0  # hue turns by 36 degrees at most
        colours.add(tuple(picture[:, 0, 0].tolist()))
    assert len(colours) > 20


def test_strength_0_and_probability_0_leave_colours_alone() -> None:
    image, mask = staircase(32, 32)
    for off in ({"photometric": 0.0}, {"photometric_strength": 0.0}):
        augment = SegmentationAugment(scale_low=1, scale_high=1, hflip=False, **off)
        picture, _ = train_transform_segmentation(DensePreprocess(window=32), augment)(image, mask)
        assert torch.allclose(picture, torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255, atol=1e-6)


def test_evaluation_resizes_the_image_alone() -> None:
    image, mask = staircase(40, 60)
    picture, labels = eval_transform_segmentation(DensePreprocess(short_side=20, window=16))(image, mask)
    assert picture.shape == (3, 20, 30)
    assert torch.equal(labels, mask)
    expected = np.asarray(image.resize((30, 20), Image.Resampling.BILINEAR)).transpose(2, 0, 1) / np.float32(255)
    assert np.allclose(picture.numpy(), expected, atol=1e-7)
    same, _ = eval_transform_segmentation(DensePreprocess())(image, mask)
    assert same.shape == (3, 40, 60)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_those_of_the_preprocessing(mode: str, channels: int) -> None:
    image, mask = staircase(40, 60)
    preprocess = DensePreprocess(window=16, channels=channels)
    for transform in (
        eval_transform_segmentation(preprocess),
        train_transform_segmentation(preprocess, SegmentationAugment(photometric=1)),
    ):
        picture, _ = transform(image.convert(mode), mask)
        assert (picture.shape[0], picture.dtype) == (channels, torch.float32)


def test_long_thin_image_takes_no_more_memory_than_any_other() -> None:
    # resized as a whole it would have 512 × 5,120,000 pixels
    image, mask = Image.new("RGB", (40_000, 4)), torch.zeros(4, 40_000, dtype=torch.int64)
    transform = train_transform_segmentation(DensePreprocess(short_side=512, window=32), SegmentationAugment())
    assert transform(image, mask)[0].shape == (3, 32, 32)


def test_training_needs_a_window() -> None:
    with pytest.raises(ConfigError, match="window is None"):
        train_transform_segmentation(DensePreprocess(), SegmentationAugment())


@pytest.mark.parametrize(
    "values",
    [
        {"scale_low": 0},
        {"scale_low": 3.0},
        {"scale_high": math.nan},
        {"photometric": 1.5},
        {"photometric": "yes"},
        {"photometric_strength": 2.5},
        {"cat_max": 0.0},
        {"cat_max": True},
    ],
)
def test_impossible_augmentation_is_refused_by_name(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        SegmentationAugment(**values)
