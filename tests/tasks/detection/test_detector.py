"""The detector as a whole: any image size, any target, and the way from the original's pixels and back."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from fullfield.data.dense import DensePreprocess
from fullfield.errors import ConfigError, DataError, ModelNotFoundError
from fullfield.tasks.detection.detections import Detections, in_original_pixels
from fullfield.tasks.detection.detector import HEADS, Detector
from fullfield.tasks.detection.resize import batch_images

ALL = sorted(HEADS)
SIZES = ((64, 96), (37, 53))


def small(head: str) -> dict[str, Any]:
    """Settings of a detector that trains on a CPU in a moment."""
    arguments: dict[str, Any] = {"fpn_channels": 16}
    if "rcnn" in head:
        arguments |= {"box_features": 16, "proposals": 50, "train_proposals": 50, "sampled_regions": 32}
        arguments["anchor_sizes"] = [8, 16, 32, 64, 128]
    else:
        arguments["convs"] = 1
    return arguments | ({"mask_features": 8} if "mask" in head else {})


def built(head: str, model: str = "test_resnet", classes: int = 2, channels: int = 3, **changes: Any) -> Detector:
    settings = DensePreprocess(channels=channels, **changes.pop("preprocess", {}))
    return Detector(
        model, head, classes, preprocess=settings, head_arguments=small(head) | changes.pop("arguments", {}), **changes
    )


def pictures(*sizes: tuple[int, int], channels: int = 3) -> list[Tensor]:
    return [torch.rand(channels, *size) for size in sizes]


def target(size: tuple[int, int], count: int, classes: int = 2) -> dict[str, Tensor]:
    corners = torch.rand(count, 2) * 15
    return {
        "boxes": torch.cat([corners, corners + 6 + torch.rand(count, 2) * 12], 1),
        "labels": torch.arange(count) % classes,
        "crowd": torch.zeros(count, dtype=torch.bool),
        "masks": (torch.rand(count, *size) > 0.5).to(torch.uint8),
    }


def trained_on(detector: Detector, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The losses, after a backward pass that must reach every part."""
    losses = detector.train()(images, targets)
    assert isinstance(losses, dict)
    sum(losses.values()).backward()
    assert all(bool(loss.isfinite()) and loss.ndim == 0 for loss in losses.values())
    return losses


def gradient(module: nn.Module) -> float:
    return sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize("head", ALL)
def test_losses_are_finite_and_their_gradients_reach_the_backbone(head: str) -> None:
    detector = built(head)
    trained_on(detector, pictures(*SIZES), [target(SIZES[0], 3), target(SIZES[1], 2)])
    first = next(detector.backbone.parameters())
    assert first.grad is not None
    assert 0 < float(first.grad.abs().sum()) < float("inf")
    assert gradient(detector.pyramid) > 0
    assert all(p.grad is not None for p in detector.head.parameters())


@pytest.mark.parametrize("head", ALL)
@pytest.mark.parametrize("counts", [(0, 2), (0, 0)], ids=["one empty", "all empty"])
def test_images_without_objects_train(head: str, counts: tuple[int, int]) -> None:
    detector = built(head)
    trained_on(detector, pictures(*SIZES), [target(size, n) for size, n in zip(SIZES, counts, strict=True)])
    assert all(p.grad is not None for p in detector.head.parameters())  # nothing for DDP to wait for


@pytest.mark.parametrize("head", ["mask_rcnn", "fcos"])
def test_one_class_and_one_channel_do(head: str) -> None:
    detector = built(head, classes=1, channels=1)
    assert detector.in_chans == 1
    trained_on(detector, pictures(*SIZES, channels=1), [target(size, 2, classes=1) for size in SIZES])
    for found in detector.eval()(pictures(*SIZES, channels=1)):
        assert set(found.labels.tolist()) <= {0}


@pytest.mark.parametrize("head", ["mask_rcnn", "retinanet"])
def test_crowd_regions_leave_the_losses_as_if_they_were_not_there(head: str) -> None:
    detector = built(head).train()
    images, full = pictures(SIZES[0]), target(SIZES[0], 4)
    full["crowd"][1:3] = True
    without = {key: value[[0, 3]] for key, value in full.items() if key != "crowd"}
    losses = []
    for one in (full, without):
        torch.manual_seed(3)
        losses.append(detector(images, [one]))
    assert losses[0].keys() == losses[1].keys()
    for name, loss in losses[0].items():
        assert torch.equal(loss, losses[1][name])


@pytest.mark.parametrize("head", ALL)
def test_a_nan_in_the_weights_gives_a_nan_loss_rather_than_an_error(head: str) -> None:
    detector = built(head).train()
    next(detector.backbone.parameters()).data.fill_(float("nan"))
    losses = detector(pictures(*SIZES), [target(SIZES[0], 2), target(SIZES[1], 0)])
    assert bool(sum(losses.values()).isnan())


@pytest.mark.parametrize("head", ALL)
def test_bfloat16_autocast_keeps_boxes_and_losses_in_float32(head: str) -> None:
    detector = built(head, arguments={"score_threshold": 0.0})
    with torch.autocast("cpu", torch.bfloat16):
        losses = trained_on(detector, pictures(*SIZES), [target(size, 2) for size in SIZES])
        found = detector.eval()(pictures(*SIZES))
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    for one in found:
        assert (one.boxes.dtype, one.scores.dtype) == (torch.float32, torch.float32)
        assert len(one) > 0
        assert not torch.equal(one.boxes, one.boxes.bfloat16().float())


@pytest.mark.parametrize("head", ALL)
def test_detections_are_sorted_and_lie_in_the_original_image(head: str) -> None:
    arguments = {"score_threshold": 0.0, "detections": 9}
    detector = built(head, preprocess={"short_side": 48, "long_side": 64}, arguments=arguments).eval()
    sizes = ((100, 31), (37, 53))
    with torch.no_grad():
        found = detector(pictures(*sizes))
    assert len(found) == 2
    for one, (height, width) in zip(found, sizes, strict=True):
        assert 0 < len(one) <= 9
        assert one.scores.tolist() == sorted(one.scores.tolist(), reverse=True)
        assert bool((one.boxes[:, 2:] > one.boxes[:, :2]).all())
        assert float(one.boxes.min()) >= 0
        assert bool((one.boxes[:, 2:] <= torch.tensor([width, height])).all())
        assert (one.masks is None) == ("mask" not in head)
        if one.masks is not None:
            assert one.masks.dtype == torch.bool
            assert tuple(one.masks.shape) == (len(one), height, width)


def test_no_images_give_no_detections() -> None:
    assert built("fcos").eval()([]) == []


@pytest.mark.parametrize("head", ALL)
def test_an_image_alone_and_in_a_padded_batch_gives_the_same(head: str) -> None:
    torch.manual_seed(2)
    detector = built(head, "racnn_pico", arguments={"score_threshold": 0.0, "detections": 20}, depths=(1, 1, 1, 1))
    detector.double().eval()
    images = [image.double() for image in pictures((100, 40), (70, 130))]
    with torch.no_grad():
        together, alone = detector(images), [detector([image])[0] for image in images]
        detector.mask_padding = False
        leaking = detector(images)
    for one, reference, other in zip(together, alone, leaking, strict=True):
        assert len(one) == len(reference) > 0
        torch.testing.assert_close(one.boxes, reference.boxes, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(one.scores, reference.scores)
        assert torch.equal(one.labels, reference.labels)
        assert len(other) != len(one) or float((other.boxes - one.boxes).abs().max()) > 1e-4


@pytest.mark.parametrize("head", ["retinanet", "fcos"])
def test_in_training_padding_changes_no_prediction_within_the_image(head: str) -> None:
    """With frozen norms, the losses of a padded image differ by the background that the padding adds, alone."""
    detector = built(head, "racnn_pico", depths=(1, 1, 1, 1)).double().train()
    for module in detector.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    images = [image.double() for image in pictures((40, 40), (90, 120))]
    targets = [target((40, 40), 2), target((90, 120), 0)]
    targets = [{**one, "boxes": one["boxes"].double()} for one in targets]
    padded, alone = detector(images, targets), detector(images[:1], targets[:1])
    share = 2 if head == "retinanet" else 1  # RetinaNet's is a mean over images, and the empty one has no boxes
    torch.testing.assert_close(padded["bbox_regression"] * share, alone["bbox_regression"])


def test_boxes_and_masks_are_scaled_and_clipped_to_the_original() -> None:
    found = {
        "boxes": torch.tensor([[5.0, 10, 15, 30], [-5, 0, 45, 20], [41, 5, 50, 9], [8, 8, 8, 12]]),
        "scores": torch.tensor([0.2, 0.9, 0.8, 0.7]),
        "labels": torch.tensor([0, 1, 2, 3]),
        "masks": torch.ones(4, 1, 28, 28),
    }
    one = in_original_pixels(found, (40, 40), (80, 120))  # twice as high, three times as wide
    assert one.boxes.tolist() == [[0, 0, 120, 40], [15, 20, 45, 60]]  # two have no area within the image
    assert one.labels.tolist() == [1, 0]
    assert one.masks is not None
    assert bool(one.masks[1, 20:60, 15:45].float().mean() > 0.95)
    assert int(one.masks[1].sum()) <= 42 * 32


def test_detections_know_their_number_and_their_device() -> None:
    one = Detections(torch.rand(3, 4), torch.rand(3), torch.arange(3), torch.ones(3, 5, 6, dtype=torch.bool))
    assert len(one) == 3
    moved = one.to("meta")
    assert {value.device.type for value in (moved.boxes, moved.scores, moved.labels, moved.masks)} == {"meta"}
    assert Detections(one.boxes, one.scores, one.labels).to("cpu").masks is None


def test_images_are_normalised_and_padded_with_the_mean_colour() -> None:
    settings = DensePreprocess(mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.25))
    images = pictures((37, 53), (20, 65))
    batch = batch_images(images, settings, resize=False)
    assert tuple(batch.tensors.shape) == (2, 3, 64, 96)
    assert batch.image_sizes == [(37, 53), (20, 65)]
    assert float(batch.tensors[0, 2, 5, 7]) == pytest.approx((float(images[0][2, 5, 7]) - 0.3) / 0.25)
    assert not batch.tensors[0, :, 37:].any()
    assert not batch.tensors[1, :, :, 65:].any()


def test_images_are_made_smaller_with_antialiasing() -> None:
    stripes = torch.zeros(3, 64, 64)
    stripes[:, :, ::2] = 1
    settings = DensePreprocess(short_side=16, mean=(0, 0, 0), std=(1, 1, 1))
    seen = batch_images([stripes], settings, resize=True).tensors[0, :, :16, :16]
    assert float((seen - 0.5).abs().max()) < 0.1  # without it stripes would come out as stripes or nothing


BAD_TARGETS: dict[str, tuple[dict[str, Any], str]] = {
    "no area": ({"boxes": [[5, 5, 5, 9]]}, r"image 1 of the batch has the box \[5.0, 5.0, 5.0, 9.0\]"),
    "upside down": ({"boxes": [[5, 9, 8, 5]]}, "right > left and bottom > top"),
    "nan": ({"boxes": [[5, float("nan"), 8, 9]]}, "image 1 of the batch has the box"),
    "infinite": ({"boxes": [[5, 5, float("inf"), 9]]}, "finite"),
    "label too high": ({"labels": [2]}, "image 1 of the batch has the label 2; with 2 classes labels run from 0 to 1"),
    "label below 0": ({"labels": [-1]}, "has the label -1"),
    "more labels": ({"labels": [0, 1]}, r"boxes of image 1 of the batch have shape \(1, 4\); 2 objects"),
    "masks of another size": ({"masks": torch.zeros(1, 5, 5)}, r"masks of image 1 .* 37 × 53"),
    "no masks": ({"masks": None}, "image 1 of the batch has no masks; read the data with outlines"),
    "no boxes": ({"boxes": None}, "image 1 of the batch has no boxes"),
}


@pytest.mark.parametrize("case", BAD_TARGETS)
def test_a_bad_target_is_named_with_its_place_in_the_batch(case: str) -> None:
    changes, says = BAD_TARGETS[case]
    bad = target(SIZES[1], 1) | {
        key: value if isinstance(value, Tensor) else torch.tensor(value)
        for key, value in changes.items()
        if value is not None
    }
    bad = {key: value for key, value in bad.items() if changes.get(key, 0) is not None}
    with pytest.raises(DataError, match=says):
        built("mask_rcnn").train()(pictures(*SIZES), [target(SIZES[0], 3), bad])


def test_a_bad_crowd_region_is_of_no_matter() -> None:
    one = target(SIZES[0], 2)
    one["boxes"][1] = 0
    one["crowd"][1] = True
    trained_on(built("fcos"), pictures(SIZES[0]), [one])


def test_integer_boxes_and_labels_of_other_types_are_taken() -> None:
    one = target(SIZES[0], 3)
    one["boxes"] = one["boxes"].round()
    other = {**one, "boxes": one["boxes"].int(), "labels": one["labels"].int()}
    detector = built("mask_rcnn").train()
    losses = []
    for each in (one, other):
        torch.manual_seed(3)
        losses.append(detector(pictures(SIZES[0]), [each]))
    assert all(torch.equal(loss, losses[1][name]) for name, loss in losses[0].items())


def test_a_copy_of_a_detector_gives_the_same(tmp_path: Path) -> None:
    detector = built("cascade_mask_rcnn", arguments={"score_threshold": 0.0}).eval()
    images = pictures(*SIZES)
    torch.save(detector.state_dict(), tmp_path / "weights.pt")
    again = built("cascade_mask_rcnn", arguments={"score_threshold": 0.0}).eval()
    again.load_state_dict(torch.load(tmp_path / "weights.pt"))
    with torch.no_grad():
        for other in (deepcopy(detector), again):
            for one, reference in zip(other(images), detector(images), strict=True):
                assert torch.equal(one.boxes, reference.boxes)
                assert torch.equal(one.scores, reference.scores)


def test_training_needs_a_target_for_each_image() -> None:
    detector = built("fcos").train()
    with pytest.raises(DataError, match="needs targets"):
        detector(pictures(SIZES[0]))
    with pytest.raises(DataError, match="2 images and 1 targets"):
        detector(pictures(*SIZES), [target(SIZES[0], 1)])
    with pytest.raises(DataError, match="no images"):
        detector([], [])


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (torch.rand(1, 32, 32), r"image 1 of the batch has shape \(1, 32, 32\); the detector takes \(3, height"),
        (torch.rand(32, 32), "has shape"),
        (torch.rand(3, 0, 32), "has shape"),
        (torch.zeros(3, 32, 32, dtype=torch.uint8), "divide by 255"),
    ],
    ids=["grey", "flat", "no pixels", "integers"],
)
def test_a_bad_image_is_named_with_its_place_in_the_batch(image: Tensor, says: str) -> None:
    with pytest.raises(DataError, match=says):
        built("fcos").eval()([torch.rand(3, 32, 32), image])


def test_a_detector_that_cannot_be_built_says_why() -> None:
    settings = DensePreprocess()
    with pytest.raises(ConfigError, match="no detection head 'mask_rcn'; did you mean 'mask_rcnn'"):
        Detector("test_resnet", "mask_rcn", 2, preprocess=settings)
    with pytest.raises(ConfigError, match="there are faster_rcnn"):
        Detector("test_resnet", "yolo", 2, preprocess=settings)
    with pytest.raises(ConfigError, match="num_classes is 0"):
        Detector("test_resnet", "fcos", 0, preprocess=settings)
    with pytest.raises(ConfigError, match="in_chans is 1, but preprocess has 3"):
        Detector("test_resnet", "fcos", 2, preprocess=settings, in_chans=1)
    with pytest.raises(ConfigError, match="did you mean 'fpn_channels'"):
        Detector("test_resnet", "fcos", 2, preprocess=settings, head_arguments={"fpn_channel": 64})
    with pytest.raises(ConfigError, match="four stages"):
        Detector("test_vit", "fcos", 2, preprocess=settings)
    with pytest.raises(ModelNotFoundError):
        Detector("racn_pico", "fcos", 2, preprocess=settings)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224", "racnn_pico"])
@pytest.mark.parametrize("head", ["mask_rcnn", "retinanet"])
def test_backbones_of_every_kind_train_and_predict(model: str, head: str) -> None:
    detector = built(head, model)
    trained_on(detector, pictures(*SIZES), [target(size, 2) for size in SIZES])
    with torch.no_grad():
        assert len(detector.eval()(pictures(*SIZES))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("head", ALL)
def test_two_rectangles_are_learned_by_heart(head: str) -> None:
    torch.manual_seed(0)
    image = torch.full((3, 64, 96), 0.5)
    boxes = torch.tensor([[8.0, 10, 40, 42], [52, 20, 88, 56]])
    masks = torch.zeros(2, 64, 96, dtype=torch.uint8)
    for label, (left, top, right, bottom) in enumerate(boxes.long().tolist()):
        image[:, top:bottom, left:right] = 0
        image[label, top:bottom, left:right] = 1
        masks[label, top:bottom, left:right] = 1
    arguments = {"fpn_channels": 32, **({"box_features": 64} if "rcnn" in head else {"convs": 2, "norm": "group"})}
    detector = built(head, arguments=arguments | ({"mask_features": 32} if "mask" in head else {}))
    optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3, weight_decay=0)
    goal = [{"boxes": boxes, "labels": torch.tensor([0, 1]), "masks": masks}]
    for _ in range(150):
        optimizer.zero_grad()
        sum(detector.train()([image], goal).values()).backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimizer.step()
    with torch.no_grad():
        (found,) = detector.eval()([image])
    for label, box in enumerate(boxes):
        best = int((found.labels == label).nonzero()[0])  # the surest of its class
        assert float(box_iou(found.boxes[best][None], box[None])) > 0.7
        assert float(found.scores[best]) > 0.3
        if found.masks is not None:
            drawn, true = found.masks[best], masks[label].bool()
            assert float((drawn & true).sum() / (drawn | true).sum()) > 0.7
