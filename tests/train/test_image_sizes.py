"""Sides against the table of the EfficientNetV2 paper and its formula, batches against torchvision's resizing."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import v2

from fullfield.errors import ConfigError
from fullfield.train.image_sizes import resize_batch, side_at


def test_the_parts_of_efficientnetv2_m_have_its_sizes() -> None:
    # table 6 of the paper: M goes from 128 to 380 in four parts of the run; between 128 and 380 lie 212 and 296
    sides = [side_at(epoch, 4, 128, 380, multiple=1) for epoch in range(4)]
    assert sides == [128, 212, 296, 380]


def test_each_multiple_between_start_and_final_has_an_equal_part_of_the_run() -> None:
    sides = [side_at(epoch, 12, 128, 224) for epoch in range(12)]
    assert sides == [128] * 3 + [160] * 3 + [192] * 3 + [224] * 3


@pytest.mark.parametrize(("start", "final"), [(128, 224), (100, 210), (96, 97), (224, 224), (1, 300)])
@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 90])
def test_sides_never_shrink_and_end_at_the_final_one(start: int, final: int, epochs: int) -> None:
    sides = [side_at(epoch, epochs, start, final) for epoch in range(epochs)]
    assert sides == sorted(sides)
    assert sides[-1] == final
    assert epochs == 1 or sides[0] == start
    assert all(side % 32 == 0 or side in (start, final) for side in sides)


def test_epochs_after_the_last_have_the_final_side() -> None:
    assert side_at(99, 10, 128, 224) == 224


def test_a_batch_is_resized_as_torchvision_does_with_antialiasing() -> None:
    images = torch.rand(3, 3, 48, 48)
    expected = v2.functional.resize(images, [32, 32], v2.InterpolationMode.BILINEAR, antialias=True)
    torch.testing.assert_close(resize_batch(images, 32), expected)


def test_resizing_commutes_with_normalising() -> None:
    images, mean, std = torch.rand(2, 1, 40, 40), 0.4, 0.2
    torch.testing.assert_close(resize_batch((images - mean) / std, 24), (resize_batch(images, 24) - mean) / std)


def test_no_random_number_is_drawn() -> None:
    state = torch.get_rng_state()
    resize_batch(torch.zeros(1, 3, 8, 8), 4)
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_of_that_size_and_empty_batches_are_left_alone() -> None:
    images, none = torch.rand(2, 3, 32, 32), torch.empty(0, 0, 0, 0)
    assert resize_batch(images, 32) is images
    assert resize_batch(none, 32) is none


def test_impossible_sizes_are_named() -> None:
    with pytest.raises(ConfigError, match="from 256 to 224 pixels"):
        side_at(0, 10, 256, 224)
    with pytest.raises(ConfigError, match="got 0, 128, 32"):
        side_at(0, 0, 128, 224)
    with pytest.raises(ConfigError, match="at least 1 pixel, got 0"):
        resize_batch(torch.zeros(1, 3, 8, 8), 0)
