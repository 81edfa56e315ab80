from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader

from fullfield.data import EpochSampler, SampleKey, Unreadable
from fullfield.data.dense import DensePreprocess
from fullfield.data.detection.dataset import DetectionBatch, DetectionItem, ObjectDetection, collate_detection
from fullfield.data.detection.geometry import empty_masks
from fullfield.data.detection.objects import DetectionSample, Objects
from fullfield.data.detection.transforms import DetectionAugment, train_transform_detection
from fullfield.errors import ConfigError, DataError

from .pictures import assert_objects_are_where_their_colour_is, picture

P = DensePreprocess(short_side=48, long_side=64, mean=(0.0, 0.0, 0.0))
ALL = DetectionAugment("large", vflip=True, crop=0.5, photometric=0.5, copy_paste=0.5, mosaic=0.5)


def rle(mask: NDArray[np.uint8]) -> dict[str, Any]:
    """COCO's uncompressed run lengths: down the columns, starting with zeros."""
    values = mask.T.flatten().tolist()
    counts, now, run = [], 0, 0
    for value in values:
        if value != now:
            counts.append(run)
            now, run = value, 0
        run += 1
    return {"size": list(mask.shape), "counts": [*counts, run]}


def write(path: Path, height: int, width: int, boxes: list[tuple[int, int, int, int]]) -> DetectionSample:
    image, target = picture(height, width, boxes)
    image.save(path)
    objects = Objects(
        boxes=target["boxes"].numpy(),
        labels=target["labels"].numpy(),
        crowd=target["crowd"].numpy(),
        areas=target["masks"].sum((1, 2)).float().numpy(),
        ids=np.arange(len(boxes)) + 900,
        masks=tuple(rle(mask.numpy()) for mask in target["masks"]),
    )
    return DetectionSample(path, int(path.stem), height, width, objects)


@pytest.fixture
def samples(tmp_path: Path) -> list[DetectionSample]:
    """Ten pictures: 2 has no objects, 3 is an empty file, 7 is missing, 8 has another size than annotated."""
    found = []
    for i in range(10):
        boxes = [] if i == 2 else [(4 + i, 6, 20 + i, 30), (30, 8 + i, 44, 30), (5, 33, 45 + i, 39)]
        found.append(write(tmp_path / f"{i}.png", 40, 56, boxes))
    found[3].path.write_bytes(b"")
    found[7].path.unlink()
    found[8] = replace(found[8], width=40, height=56)
    return found


def training_set(samples: list[DetectionSample], seed: int = 0) -> ObjectDetection:
    return ObjectDetection(samples, train_transform_detection(P, ALL), masks=True, seed=seed)


def item_of(data: ObjectDetection, key: int | SampleKey) -> DetectionItem:
    item = data[key]
    assert not isinstance(item, Unreadable)
    return item


def assert_same(one: DetectionItem, two: DetectionItem) -> None:
    assert torch.equal(one[0], two[0])
    assert one[1].keys() == two[1].keys()
    assert all(torch.equal(one[1][key], two[1][key]) for key in one[1])


def epoch_of(samples: list[DetectionSample], workers: int, batch_size: int) -> dict[int, DetectionItem]:
    sampler = EpochSampler(len(samples), shuffle=True, seed=0)
    sampler.set_epoch(3)
    loader = DataLoader(
        training_set(samples),
        batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate_detection,
        multiprocessing_context="fork" if workers else None,
    )
    return {
        int(index): (image, target, int(index))
        for batch in loader
        for image, target, index in zip(batch.images, batch.targets, batch.indices, strict=True)
    }


@pytest.mark.parametrize("masks", [True, False])
def test_without_transform_a_picture_comes_as_it_is(samples: list[DetectionSample], masks: bool) -> None:
    data = ObjectDetection(samples, masks=masks)
    assert len(data) == 10
    image, target, index = item_of(data, 4)
    assert index == 4
    pixels = np.array(Image.open(samples[4].path)).transpose(2, 0, 1)
    assert torch.equal(image, torch.from_numpy(pixels) / 255)
    assert target["boxes"].tolist() == samples[4].objects.boxes.tolist()
    assert ("masks" in target) == masks
    assert_objects_are_where_their_colour_is(image, target, box_pixels=0)
    assert_same(item_of(data, SampleKey(9, 4)), (image, target, index))


def test_picture_without_objects_gives_empty_tensors(samples: list[DetectionSample]) -> None:
    image, target, _ = item_of(ObjectDetection(samples, masks=True), 2)
    assert image.shape == (3, 40, 56)
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, 40, 56)
    bare = replace(samples[2], objects=replace(samples[2].objects, masks=None))
    assert item_of(ObjectDetection([bare], masks=True), 0)[1]["masks"].shape == (0, 40, 56)


def test_one_channel_is_grey(samples: list[DetectionSample]) -> None:
    image, _, _ = item_of(ObjectDetection(samples, channels=1), 0)
    expected = np.asarray(Image.open(samples[0].path).convert("L")) / np.float32(255)
    assert torch.allclose(image, torch.from_numpy(expected)[None])
    grey = DensePreprocess(48, 64, channels=1)
    data = ObjectDetection(samples, train_transform_detection(grey, ALL), channels=1, masks=True)
    for epoch in range(8):
        assert item_of(data, SampleKey(epoch, 0))[0].shape == (1, 64, 64)


@pytest.mark.parametrize("workers", [1, 2])
def test_pictures_do_not_depend_on_the_number_of_workers(samples: list[DetectionSample], workers: int) -> None:
    alone, shared = epoch_of(samples, 0, 1), epoch_of(samples, workers, 3)
    assert alone.keys() == shared.keys() == {0, 1, 2, 4, 5, 6, 9}
    for index, item in alone.items():
        assert_same(item, shared[index])


def test_picture_depends_on_seed_epoch_index_and_copy_alone(samples: list[DetectionSample]) -> None:
    data = training_set(samples)
    before = torch.get_rng_state()
    first = item_of(data, SampleKey(1, 5))
    torch.rand(7)
    assert_same(first, item_of(data, SampleKey(1, 5)))
    for others in (item_of(data, SampleKey(2, 5)), item_of(data, SampleKey(1, 5, 1))):
        assert not torch.equal(first[0], others[0])
    assert not torch.equal(first[0], item_of(training_set(samples, seed=1), SampleKey(1, 5))[0])
    torch.set_rng_state(before)
    item_of(data, SampleKey(0, 0))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    one = item_of(data, 5)
    assert not torch.equal(one[0], item_of(data, 5)[0])


def test_objects_stay_where_they_are_seen(samples: list[DetectionSample]) -> None:
    augment = replace(ALL, photometric=0.0, copy_paste=0.0, mosaic=0.0)
    data = ObjectDetection(samples, train_transform_detection(P, augment), masks=True)
    for epoch in range(10):
        image, target, _ = item_of(data, SampleKey(epoch, 5))
        assert_objects_are_where_their_colour_is(image, target)


def test_unusable_pictures_say_why(samples: list[DetectionSample]) -> None:
    for data in (ObjectDetection(samples), training_set(samples)):
        reasons = {i: item.reason for i in range(10) if isinstance(item := data[i], Unreadable)}
        assert reasons.keys() == {3, 7, 8}
        assert "empty" in reasons[3]
        assert "does not exist" in reasons[7]
        assert "56 × 40 pixels upright" in reasons[8]
        assert "annotated as 40 × 56" in reasons[8]
        item = data[8]
        assert isinstance(item, Unreadable)
        assert item.path == str(samples[8].path)
        assert item.path not in item.reason


def test_size_is_that_of_the_upright_picture(samples: list[DetectionSample], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.new("RGB", (40, 56)).save(tmp_path / "turned.jpg", exif=exif)
    turned = replace(samples[0], path=tmp_path / "turned.jpg")
    assert item_of(ObjectDetection([turned]), 0)[0].shape == (3, 40, 56)


def test_unreadable_partners_are_done_without(samples: list[DetectionSample]) -> None:
    usable, broken = samples[0], [samples[3], samples[7], samples[8]]
    augment = DetectionAugment(hflip=False, copy_paste=1.0, mosaic=1.0)
    data = ObjectDetection([usable, *broken], train_transform_detection(P, augment), masks=True)
    alone = ObjectDetection([usable], train_transform_detection(P, DetectionAugment(hflip=False)), masks=True)
    for epoch in range(5):
        assert_same(item_of(data, SampleKey(epoch, 0)), item_of(alone, 0))


def test_partners_are_every_other_picture(samples: list[DetectionSample]) -> None:
    data = ObjectDetection(samples[4:7])
    read: list[int] = []
    data._read = read.append  # type: ignore[assignment, method-assign]
    for _ in range(60):
        data._another(1)
    assert set(read) == {0, 2}
    read.clear()
    for _ in range(60):
        data._another(-1)  # a plain index may count from the end
    assert set(read) == {0, 1}


def test_broken_outline_is_named(samples: list[DetectionSample]) -> None:
    objects = samples[0].objects
    assert objects.masks is not None
    broken = replace(objects, masks=(objects.masks[0], {"size": [7, 9], "counts": [63]}, objects.masks[2]))
    data = ObjectDetection([replace(samples[0], objects=broken)], masks=True)
    item = data[0]
    assert isinstance(item, Unreadable)
    assert "annotation 901" in item.reason


def test_changing_a_target_leaves_the_data_set(samples: list[DetectionSample]) -> None:
    data = ObjectDetection(samples)
    item_of(data, 0)[1]["boxes"].zero_()
    assert item_of(data, 0)[1]["boxes"].sum() > 0


def test_masks_of_boxes_are_refused(samples: list[DetectionSample]) -> None:
    bare = replace(samples[1], objects=replace(samples[1].objects, masks=None))
    with pytest.raises(DataError, match=r"1\.png: masks are asked for, and its 3 objects"):
        ObjectDetection([samples[0], bare], masks=True)
    with pytest.raises(ConfigError, match="copy_paste needs masks"):
        ObjectDetection([bare], train_transform_detection(P, ALL))
    with pytest.raises(ConfigError, match="channels is 4"):
        ObjectDetection([bare], channels=4)


def test_batch_lists_images_and_what_was_left_out(samples: list[DetectionSample]) -> None:
    data = ObjectDetection(samples)
    batch = collate_detection([data[i] for i in (2, 3, 0)])
    assert [tuple(image.shape) for image in batch.images] == [(3, 40, 56)] * 2
    assert [len(target["labels"]) for target in batch.targets] == [0, 3]
    assert batch.indices.tolist() == [2, 0]
    assert batch.indices.dtype == torch.int64
    assert [bad.path for bad in batch.unreadable] == [str(samples[3].path)]
    assert collate_detection([data[3]])[:2] == ((), ())
    assert isinstance(DetectionBatch(*batch), DetectionBatch)


def test_real_photographs_pass_with_everything_on(shared_data: Path) -> None:
    folder = shared_data / "nuclei_coco"
    coco = json.loads((folder / "instances_train.json").read_text())
    found = []
    for image in coco["images"][:3]:
        mine = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
        boxes = np.array([a["bbox"] for a in mine], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        zeros = np.zeros(len(mine), np.int64)
        outlines = tuple(a["segmentation"] for a in mine)
        objects = Objects(boxes, zeros, zeros.astype(bool), zeros.astype(np.float32), zeros, outlines)
        path = next(folder.rglob(Path(image["file_name"]).name))
        found.append(DetectionSample(path, image["id"], image["height"], image["width"], objects))
    data = ObjectDetection(found, train_transform_detection(DensePreprocess(256, 320), ALL), masks=True)
    for epoch in range(3):
        for index in range(3):
            image, target, _ = item_of(data, SampleKey(epoch, index))
            assert image.shape == (3, 320, 320)
            assert len(target["boxes"]) == len(target["labels"]) == len(target["crowd"]) == len(target["masks"])
            assert (target["masks"].flatten(1).sum(1) > 0).all()


def test_more_masks_than_memory_should_hold_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fullfield.data.detection.geometry.MAX_MASK_BYTES", 64 * 48 * 2)
    with pytest.raises(DataError, match=r"3 objects at 64 × 48 pixels need 0\.0 GB of masks, more than"):
        empty_masks(3, (48, 64))
    assert empty_masks(2, (48, 64)).shape == (2, 48, 64)
