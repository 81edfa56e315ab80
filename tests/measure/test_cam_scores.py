"""Deletion and insertion: the curves of a slow loop, exact areas where they are known, and what random maps give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from fullfield.errors import ConfigError
from fullfield.measure.cam_scores import Curve, blurred, cam_scores, deletion_and_insertion, random_maps


def brightness(images: Tensor) -> Tensor:
    """Return the mean of the upper left quarter, (B,)."""
    H, W = images.shape[2:]
    return images[:, :, : H // 2, : W // 2].mean(dim=(1, 2, 3)).clamp(0, 1)


def test_curves_are_those_of_a_loop_over_pixels() -> None:
    rng = np.random.default_rng(0)
    heat = rng.permutation(8 * 6).reshape(8, 6).astype(np.float32) / 47
    image = torch.rand(1, 3, 8, 6)
    weight = torch.rand(3, 8, 6)

    def confidence(images: Tensor) -> Tensor:
        return ((images * weight).sum(dim=(1, 2, 3)) / 40).sigmoid()

    deletion, insertion = deletion_and_insertion(confidence, image, heat, steps=7, batch_size=3, seed=0)
    soft = blurred(image)
    for step, (deleted, inserted) in enumerate(zip(deletion.confidence, insertion.confidence, strict=True)):
        count = round(step / 7 * 48)
        without, shown = image.clone(), soft.clone()
        for y in range(8):
            for x in range(6):
                if (heat > heat[y, x]).sum() < count:
                    without[:, :, y, x] = 0
                    shown[:, :, y, x] = image[:, :, y, x]
        assert deleted == pytest.approx(float(confidence(without)), abs=1e-6)
        assert inserted == pytest.approx(float(confidence(shown)), abs=1e-6)


def test_areas_are_exact_for_a_model_that_counts_pixels() -> None:
    image = torch.ones(1, 1, 16, 16)
    perfect = np.zeros((16, 16), dtype=np.float32)
    perfect[:8, :8] = 1.0
    for heat, area in ((perfect, 1 / 8), (1 - perfect, 7 / 8)):
        deletion, insertion = deletion_and_insertion(brightness, image, heat, steps=64, batch_size=16, seed=0)
        assert deletion.auc == pytest.approx(area, abs=1e-6)
        assert insertion.auc == pytest.approx(1.0)  # a blurred white image is white
    scores = cam_scores(brightness, image, perfect, (16, 16), steps=16, orders=20, batch_size=32, seed=0)
    assert scores.random_deletion.auc == pytest.approx(0.5, abs=0.03)


def test_the_area_is_by_trapezoids() -> None:
    assert Curve((0.0, 0.5, 1.0), (1.0, 0.5, 0.0)).auc == pytest.approx(0.5)
    assert Curve((0.0, 0.25, 1.0), (1.0, 0.0, 0.0)).auc == pytest.approx(0.125)


def test_equal_values_are_taken_at_random_and_by_the_seed() -> None:
    flat = np.zeros((16, 16), dtype=np.float32)
    image = torch.ones(1, 1, 16, 16)

    def run(seed: int) -> tuple[float, ...]:
        return deletion_and_insertion(brightness, image, flat, steps=8, batch_size=9, seed=seed)[0].confidence

    assert run(0) == run(0) != run(1)
    assert np.abs(np.array(run(0)) - np.linspace(1, 0, 9)).max() < 0.15  # row by row, half were gone after a quarter


def test_deleted_pixels_take_the_colour_that_is_asked_for() -> None:
    seen: list[Tensor] = []

    def keep(images: Tensor) -> Tensor:
        seen.append(images.clone())
        return images.new_zeros(len(images))

    fill = torch.tensor([0.25, 0.5])[None, :, None, None]
    heat = np.random.default_rng(0).random((4, 4)).astype(np.float32)
    deletion_and_insertion(keep, torch.ones(1, 2, 4, 4), heat, steps=1, batch_size=2, seed=0, fill=fill)
    assert torch.equal(seen[0][1], fill.expand(1, 2, 4, 4)[0])


def test_the_blur_is_rise_s_at_224_pixels_and_fits_small_images() -> None:
    image = torch.rand(1, 3, 224, 224)
    assert torch.allclose(blurred(image), gaussian_blur(image, [11, 11], [5.0, 5.0]))
    for H, W in ((1, 9), (2, 2), (3, 200)):
        assert blurred(torch.rand(1, 3, H, W)).shape == (1, 3, H, W)


def test_random_maps_differ_from_one_another_and_repeat_by_the_seed() -> None:
    first, second = random_maps(2, (3, 4), (32, 48), 0)
    assert first.shape == (32, 48)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, random_maps(1, (3, 4), (32, 48), 0)[0])


# --- memory ---


def greedy(most: int, error: Exception, sizes: list[int]) -> Callable[[Tensor], Tensor]:
    def confidence(images: Tensor) -> Tensor:
        sizes.append(len(images))
        if len(images) > most:
            raise error
        return brightness(images)

    return confidence


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
]


@pytest.mark.parametrize("error", ERRORS, ids=["GPU", "CPU"])
def test_the_batch_is_halved_and_the_scores_are_the_same(error: Exception, capsys: Any) -> None:
    image, sizes = torch.rand(1, 3, 16, 16), []
    heat = np.random.default_rng(0).random((16, 16)).astype(np.float32)
    arguments: dict[str, Any] = {"steps": 9, "batch_size": 8, "seed": 0}
    found = deletion_and_insertion(greedy(2, error, sizes), image, heat, **arguments)
    assert "out of memory with 8 images at a time; going on with 4" in capsys.readouterr().err
    assert sizes[:3] == [8, 4, 2]
    assert found == deletion_and_insertion(brightness, image, heat, **arguments)
    with pytest.raises(ConfigError, match="memory does not suffice for one image; use a smaller image_size"):
        deletion_and_insertion(greedy(0, error, []), image, heat, **arguments)


def test_other_errors_pass() -> None:
    heat = np.zeros((4, 4), dtype=np.float32)
    with pytest.raises(RuntimeError, match="a bug"):
        deletion_and_insertion(
            greedy(0, RuntimeError("a bug"), []), torch.rand(1, 3, 4, 4), heat, steps=2, batch_size=2, seed=0
        )


@pytest.mark.parametrize("wrong", ["steps", "orders", "batch_size"])
def test_impossible_numbers_are_refused(wrong: str) -> None:
    arguments = {"steps": 2, "orders": 1, "batch_size": 2, "seed": 0} | {wrong: 0}
    with pytest.raises(ConfigError, match="steps, orders and batch_size must be at least 1"):
        cam_scores(brightness, torch.rand(1, 3, 4, 4), np.zeros((4, 4), dtype=np.float32), (2, 2), **arguments)
