from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fullfield.data.dense import DensePreprocess
from fullfield.data.detection.transforms import (
    DetectionAugment,
    eval_transform_detection,
    train_transform_detection,
)
from fullfield.errors import ConfigError, DataError

from .pictures import HALF, assert_objects_are_where_their_colour_is, picture

BLACK = {"mean": (0.0, 0.0, 0.0)}  # padding in the colour of the background
P = DensePreprocess(short_side=96, long_side=160, **BLACK)
BOXES = [(8, 10, 40, 50), (60, 20, 90, 60), (20, 70, 110, 90)]
GEOMETRIES: dict[str, dict[str, Any]] = {
    "hflip": {},
    "vflip": {"vflip": True},
    "multi": {"scale_jitter": "multi"},
    "standard": {"scale_jitter": "standard"},
    "large": {"scale_jitter": "large"},
    "crop": {"crop": 1.0},
    "large and crop": {"scale_jitter": "large", "crop": 1.0, "vflip": True},
}


def same_picture() -> tuple[Image.Image, dict[str, torch.Tensor]]:
    return picture(100, 130, BOXES)


def plain(**values: Any) -> DetectionAugment:
    return DetectionAugment(**{"hflip": False, **values})


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_objects_stay_where_their_pixels_are(name: str, masks: bool) -> None:
    transform = train_transform_detection(P, DetectionAugment(**GEOMETRIES[name]))
    kept = Counter[int]()
    for seed in range(30):
        torch.manual_seed(seed)
        x, target = transform(*picture(100, 130, BOXES, masks=masks))
        assert x.dtype == torch.float32
        assert 0 <= float(x.min()) <= float(x.max()) <= 1
        assert ("masks" in target) == masks
        assert_objects_are_where_their_colour_is(x, target)
        assert target["boxes"].dtype == torch.float32
        assert target["labels"].dtype == torch.int64
        kept.update(target["labels"].tolist())
        assert (target["boxes"].min() if len(target["boxes"]) else 0) >= 0
        assert (target["boxes"] <= torch.tensor([x.shape[2], x.shape[1]] * 2)).all()
    assert all(kept[label] > 5 for label in range(3))


@pytest.mark.parametrize(("height", "width"), [(100, 130), (130, 100), (20, 400), (1, 1), (1, 3000)])
def test_without_jitter_the_size_is_that_of_evaluation(height: int, width: int) -> None:
    x, _ = train_transform_detection(P, plain())(*picture(height, width, []))
    assert tuple(x.shape[1:]) == P.resized(height, width)


def test_without_sizes_and_flips_the_picture_is_unchanged() -> None:
    image, target = same_picture()
    x, after = train_transform_detection(DensePreprocess(), plain())(image, target)
    assert torch.equal(x, torch.from_numpy(np.asarray(image).transpose(2, 0, 1) / np.float32(255)))
    assert all(torch.equal(after[key], target[key]) for key in target)


def test_multi_draws_detrs_sides() -> None:
    transform = train_transform_detection(DensePreprocess(800, 1333), plain(scale_jitter="multi"))
    sides = [transform._resized((480, 640)) for _ in range(400)]
    assert {min(side) for side in sides} == set(range(480, 801, 32))
    assert max(max(transform._resized((300, 1000))) for _ in range(50)) == 1333


@pytest.mark.parametrize(("jitter", "low", "high"), [("standard", 0.8, 1.25), ("large", 0.1, 2.0)])
def test_jitter_factors_are_those_of_the_paper_and_uniform(jitter: str, low: float, high: float) -> None:
    transform = train_transform_detection(DensePreprocess(long_side=1000), plain(scale_jitter=jitter))
    scales = torch.tensor([transform._resized((400, 500))[1] / 1000 for _ in range(2000)])
    assert low - 1e-3 <= float(scales.min()) < low + 0.05 * (high - low)
    assert high - 0.05 * (high - low) < float(scales.max()) <= high + 1e-3
    assert float(scales.mean()) == pytest.approx((low + high) / 2, abs=0.05 * (high - low))


@pytest.mark.parametrize("jitter", ["standard", "large"])
@pytest.mark.parametrize(("height", "width"), [(100, 130), (300, 20), (1, 1), (2, 3000)])
def test_jitter_gives_a_square_of_the_long_side(jitter: str, height: int, width: int) -> None:
    transform = train_transform_detection(P, plain(scale_jitter=jitter))
    for _ in range(5):
        assert transform(*picture(height, width, []))[0].shape == (3, 160, 160)


def test_padding_has_the_mean_colour() -> None:
    transform = train_transform_detection(
        DensePreprocess(long_side=64, mean=(0.2, 0.4, 0.6)), plain(scale_jitter="large")
    )
    torch.manual_seed(2)
    corners = [transform(*picture(50, 50, [(0, 0, 50, 50)]))[0][:, -1, -1] for _ in range(10)]
    expected = torch.tensor([51, 102, 153]) / 255
    assert any(torch.allclose(corner, expected) for corner in corners)


@pytest.mark.parametrize("flip", ["hflip", "vflip"])
def test_half_of_the_pictures_are_mirrored(flip: str) -> None:
    transform = train_transform_detection(DensePreprocess(), plain(**{flip: True}))
    image, target = picture(10, 10, [(0, 0, 2, 2)])
    corners = Counter(tuple(transform(image, target)[1]["boxes"][0].int().tolist()) for _ in range(200))
    mirrored = (8, 0, 10, 2) if flip == "hflip" else (0, 8, 2, 10)
    assert set(corners) == {(0, 0, 2, 2), mirrored}
    assert 70 < corners[mirrored] < 130


def test_crop_keeps_an_object_and_only_those_with_their_centre_inside() -> None:
    transform = train_transform_detection(DensePreprocess(**BLACK), plain(crop=1.0))
    sizes = set()
    for _ in range(40):
        x, target = transform(*same_picture())
        sizes.add(tuple(x.shape[1:]))
        assert len(target["labels"]) > 0
        for box, label in zip(target["boxes"], target["labels"], strict=True):
            whole = torch.tensor(BOXES[int(label)])
            half = (whole[2:] - whole[:2]) // 2
            window = torch.tensor([x.shape[2], x.shape[1]])  # an object may reach beyond it on both sides
            assert (box[2:] - box[:2] >= torch.minimum(half, window)).all()
    assert len(sizes) > 10


def test_photometric_changes_colours_and_nothing_else() -> None:
    image, target = same_picture()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 130, 3), dtype=np.uint8))
    x, after = train_transform_detection(DensePreprocess(), plain(photometric=1.0))(image, target)
    assert not torch.equal(x, eval_transform_detection(image, target)[0])
    assert all(torch.equal(after[key], target[key]) for key in target)
    grey, _ = train_transform_detection(DensePreprocess(), plain(photometric=1.0))(image.convert("L"), target)
    assert grey.shape == (1, 100, 130)


def test_copy_paste_adds_objects_of_the_other_picture() -> None:
    transform = train_transform_detection(P, plain(copy_paste=1.0, scale_jitter="large"))
    added = 0
    for seed in range(20):
        torch.manual_seed(seed)
        x, target = transform(*picture(100, 130, [(8, 10, 40, 50)]), lambda: other())
        assert_objects_are_where_their_colour_is(x, {**target, "crowd": target["labels"] == 1})
        added += 2 in target["labels"].tolist()
    assert 5 <= added <= 15  # half of the objects, less those out of sight


def other() -> tuple[Image.Image, dict[str, torch.Tensor]]:
    image, target = picture(90, 60, [(0, 0, 1, 1), (0, 0, 1, 1), (10, 10, 50, 60)])
    return image, target


def test_mosaic_shows_four_pictures_with_their_objects() -> None:
    transform = train_transform_detection(P, DetectionAugment(mosaic=1.0))
    colours = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)]

    def filled(label: int) -> tuple[Image.Image, dict[str, torch.Tensor]]:
        pixels = np.zeros((80, 100, 3), np.uint8)
        pixels[5:75, 5:95] = np.array(colours[label]) * 255
        mask = torch.from_numpy((pixels.max(2) > 0).astype(np.uint8))[None]
        box = torch.tensor([[5.0, 5.0, 95.0, 75.0]])
        target = {"boxes": box, "labels": torch.tensor([label]), "crowd": torch.tensor([False]), "masks": mask}
        return Image.fromarray(pixels), target

    for seed in range(10):
        torch.manual_seed(seed)
        more = iter([1, 2, 3])
        x, target = transform(*filled(0), lambda more=more: filled(next(more)))
        assert tuple(x.shape[1:]) == P.resized(80, 100)
        assert target["labels"].tolist() == [0, 1, 2, 3]
        assert target["masks"].sum(0).max() == 1
        for i, colour in enumerate(colours):
            distance = (x - torch.tensor(colour)[:, None, None]).abs().amax(0)
            mine = distance < 0.5
            differs = target["masks"][i].bool() != mine
            assert ((distance[differs] - 0.5).abs() <= HALF).all()
            rows, columns = torch.nonzero(mine, as_tuple=True)
            bounds = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert (target["boxes"][i] - bounds).abs().max() <= 1


@pytest.mark.parametrize("what", ["copy_paste", "mosaic"])
def test_picture_stays_where_there_is_no_other(what: str) -> None:
    transform = train_transform_detection(P, plain(**{what: 1.0}))
    expected = train_transform_detection(P, plain())(*same_picture())
    for others in (None, lambda: None):
        x, target = transform(*same_picture(), others)
        assert torch.equal(x, expected[0])
        assert all(torch.equal(target[key], expected[1][key]) for key in target)


@pytest.mark.parametrize("what", ["copy_paste", "mosaic"])
def test_other_picture_with_a_broken_mask_is_done_without(what: str) -> None:
    class Broken:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int, /) -> torch.Tensor:
            raise DataError("broken")

    transform = train_transform_detection(P, plain(**{what: 1.0}))
    image, target = same_picture()
    assert len(transform(image, target, lambda: (image, {**target, "masks": Broken()}))[1]["labels"]) == 3
    with pytest.raises(DataError, match="broken"):
        transform(image, {**target, "masks": Broken()}, lambda: (image, target))


ALL = DetectionAugment("large", vflip=True, crop=0.5, photometric=0.5, copy_paste=0.5, mosaic=0.5)


def test_five_hundred_objects_pass() -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(500, 2, generator=generator) * 110
    target = {
        "boxes": torch.cat([corner, corner + 8], 1),
        "labels": torch.arange(500),
        "crowd": torch.arange(500) % 7 == 0,
        "masks": torch.zeros(500, 120, 120, dtype=torch.uint8),
    }
    for mask, (x, y) in zip(target["masks"], corner.int().tolist(), strict=True):
        mask[y : y + 8, x : x + 8] = 1
    image = Image.new("RGB", (120, 120))
    for seed in range(4):
        torch.manual_seed(seed)
        _, after = train_transform_detection(P, ALL)(image, target, lambda: (image, target))
        assert len(after["boxes"]) == len(after["labels"]) == len(after["masks"]) == len(after["crowd"]) > 0
        assert torch.equal(after["crowd"], after["labels"] % 7 == 0)


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (40, 60)])
def test_pictures_without_objects_pass(size: tuple[int, int], masks: bool) -> None:
    augment = ALL if masks else DetectionAugment("large", crop=0.5, photometric=0.5, mosaic=0.5)
    for seed in range(10):
        torch.manual_seed(seed)
        empty = picture(*size, [], masks=masks)
        x, target = train_transform_detection(P, augment)(*empty, lambda empty=empty: empty)
        assert x.shape == (3, 160, 160)
        assert target["boxes"].shape == (0, 4)
        assert target["labels"].shape == target["crowd"].shape == (0,)
        assert "masks" not in target or target["masks"].shape == (0, 160, 160)


def test_seed_fixes_the_result_and_input_stays() -> None:
    transform = pickle.loads(pickle.dumps(train_transform_detection(P, ALL)))  # noqa: S301
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        image, target = same_picture()
        results.append(transform(image, target, other))
        assert all(torch.equal(target[key], value) for key, value in same_picture()[1].items())
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1]["boxes"], results[1][1]["boxes"])
    assert not torch.equal(results[0][0], results[2][0])


def test_evaluation_leaves_size_and_target() -> None:
    image, target = same_picture()
    x, after = eval_transform_detection(image, target)
    assert torch.equal(x, torch.from_numpy(np.asarray(image).transpose(2, 0, 1) / np.float32(255)))
    assert x.dtype == torch.float32
    assert after.keys() == target.keys()
    assert all(torch.equal(after[key], target[key]) for key in target)
    assert eval_transform_detection(image.convert("L"), target)[0].shape == (1, 100, 130)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale_jitter": "larg"}, "did you mean 'large'"),
        ({"scale_jitter": None}, "Use one of none, multi, standard, large"),
        ({"crop": 1.5}, "crop is 1.5; it is a probability"),
        ({"photometric": -0.1}, "photometric is -0.1"),
        ({"copy_paste": float("nan")}, "copy_paste is nan"),
        ({"mosaic": True}, "mosaic is True"),
        ({"mosaic": "0.5"}, "mosaic is '0.5'"),
        ({"hflip": 1}, "hflip is 1; it is true or false"),
    ],
)
def test_impossible_augmentation_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DetectionAugment(**values)


@pytest.mark.parametrize(
    ("jitter", "side"), [("multi", "short_side"), ("standard", "long_side"), ("large", "long_side")]
)
def test_jitter_without_its_side_is_refused(jitter: str, side: str) -> None:
    with pytest.raises(ConfigError, match=side):
        train_transform_detection(DensePreprocess(), DetectionAugment(jitter))


def test_copy_paste_without_masks_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs masks"):
        train_transform_detection(P, plain(copy_paste=0.1))(*picture(100, 130, BOXES, masks=False))
