from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from fullfield.data.detection.geometry import AnnotatedImage, View, view_inside

from .pictures import annotated, as_tensor, assert_objects_are_where_their_colour_is

BOXES = [(5, 8, 25, 30), (40, 10, 60, 44), (10, 50, 70, 62)]


def target_of(example: AnnotatedImage) -> dict[str, torch.Tensor]:
    assert isinstance(example.masks, torch.Tensor)
    return {"boxes": example.boxes, "labels": example.labels, "crowd": example.crowd, "masks": example.masks}


def check(example: AnnotatedImage, **limits: float) -> None:
    assert_objects_are_where_their_colour_is(as_tensor(example.image), target_of(example), **limits)  # type: ignore[arg-type]


@pytest.mark.parametrize("hflip", [False, True])
@pytest.mark.parametrize("vflip", [False, True])
@pytest.mark.parametrize("size", [(70, 80), (140, 160), (35, 40), (31, 97), (13, 11)])
def test_mask_equals_the_pixels_after_any_resize_and_flip(size: tuple[int, int], hflip: bool, vflip: bool) -> None:
    view = View((0, 0, 70, 80), size, (size[0] + 7, size[1] + 3), hflip, vflip)
    shown = view(annotated(70, 80, BOXES), (0, 0, 0))
    assert shown.size == (size[0] + 7, size[1] + 3)
    assert len(shown.labels) == 3
    check(shown)


def test_object_half_outside_the_window_is_cut_and_one_outside_is_gone() -> None:
    shown = View((0, 20, 40, 30), (80, 60), (80, 60))(annotated(70, 80, BOXES), (0, 0, 0))
    assert shown.labels.tolist() == [0, 1]
    assert shown.boxes.tolist() == [[0, 16, 10, 60], [40, 20, 60, 80]]
    check(shown)


def test_cut_box_is_that_of_the_rest_of_the_mask() -> None:
    whole = annotated(40, 40, [(0, 0, 30, 30)])
    assert isinstance(whole.masks, torch.Tensor)
    whole.masks[0, 10:, 10:] = 0  # an L: its right end is a strip at the top
    shown = View((15, 0, 25, 40), (25, 40), (25, 40))(whole, (0, 0, 0))
    assert shown.boxes.tolist() == [[0, 0, 10, 15]]


def test_box_of_an_object_that_is_not_cut_keeps_its_fractions() -> None:
    example = annotated(20, 20, [(4, 4, 12, 12)])
    example.boxes[0] = torch.tensor([4.25, 4.5, 11.75, 12.0])
    assert View((0, 0, 20, 20), (40, 40), (40, 40))(example, (0, 0, 0)).boxes.tolist() == [[8.5, 9.0, 23.5, 24.0]]


def test_boxes_without_masks_equal_torchvisions_steps() -> None:
    generator = torch.Generator().manual_seed(3)
    corners = torch.rand(200, 2, 2, generator=generator) * torch.tensor([100.0, 90.0])
    boxes = torch.cat([corners.min(1).values, corners.max(1).values], 1)
    example = AnnotatedImage(
        Image.new("RGB", (100, 90)), boxes, torch.arange(200), torch.zeros(200, dtype=torch.bool), None
    )
    shown = View((20, 30, 50, 40), (75, 66), (80, 70), hflip=True)(example, (0, 0, 0))
    v2_boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(90, 100))
    steps = v2.Compose(
        [lambda x: v2.functional.crop(x, 20, 30, 50, 40), v2.Resize((75, 66)), v2.RandomHorizontalFlip(1)]
    )
    expected = v2.SanitizeBoundingBoxes(labels_getter=lambda t: t["labels"])(
        {"boxes": steps(v2_boxes), "labels": torch.arange(200)}
    )
    assert shown.labels.tolist() == expected["labels"].tolist()
    assert 20 < len(shown.labels) < 180
    assert torch.allclose(shown.boxes, expected["boxes"].as_subclass(torch.Tensor), atol=1e-4)


@pytest.mark.parametrize("seed", range(20))
def test_mask_equals_that_of_resizing_the_whole_of_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros((61, 83), np.uint8)
    top, left = rng.integers(0, 50, 2)
    mask[top : top + 30, left : left + 20] = rng.random(mask[top : top + 30, left : left + 20].shape) < 0.7
    window = (int(rng.integers(0, 20)), int(rng.integers(0, 20)), int(rng.integers(5, 40)), int(rng.integers(5, 60)))
    size = (int(rng.integers(3, 130)), int(rng.integers(3, 130)))
    example = AnnotatedImage(
        Image.new("L", (83, 61)),
        torch.tensor([[0.0, 0.0, 83.0, 61.0]]),
        torch.tensor([4]),
        torch.tensor([False]),
        torch.from_numpy(mask)[None],
    )
    cut = Image.fromarray(mask * np.uint8(255)).resize(
        size[::-1], Image.Resampling.BILINEAR, (window[1], window[0], window[1] + window[3], window[0] + window[2])
    )
    expected = np.asarray(cut)[::-1, ::-1]
    shown = View(window, size, size, hflip=True, vflip=True)(example, 0)
    if not (expected >= 128).any():
        assert len(shown.labels) == 0
        return
    assert isinstance(shown.masks, torch.Tensor)
    differs = (shown.masks[0].numpy() == 1) != (expected >= 128)
    assert (np.abs(expected[differs].astype(int) - 128) <= 1).all()  # one level, from rounding


def test_padding_has_the_colour_asked_for_and_no_mask() -> None:
    example = annotated(10, 10, [(0, 0, 10, 10)])
    shown = View((0, 0, 10, 10), (10, 10), (12, 15))(example, (7, 8, 9))
    assert np.asarray(shown.image)[11, 14].tolist() == [7, 8, 9]
    assert isinstance(shown.masks, torch.Tensor)
    assert int(shown.masks.sum()) == 100


def test_object_smaller_than_a_pixel_is_left_out() -> None:
    shown = View((0, 0, 70, 80), (7, 8), (7, 8))(annotated(70, 80, [(5, 8, 25, 30), (40, 10, 49, 44)]), (0, 0, 0))
    assert shown.labels.tolist() == [0]


def test_object_with_an_empty_mask_is_left_out_and_the_others_stay() -> None:
    example = annotated(70, 80, BOXES)
    assert isinstance(example.masks, torch.Tensor)
    example.masks[1] = 0
    shown = View((0, 0, 70, 80), (35, 40), (40, 40))(example, (0, 0, 0))
    assert shown.labels.tolist() == [0, 2]
    assert isinstance(shown.masks, torch.Tensor)
    check(shown)


@pytest.mark.parametrize("masks", [True, False])
def test_picture_without_objects_passes(masks: bool) -> None:
    shown = View((2, 2, 5, 5), (9, 9), (10, 10))(annotated(10, 10, [], masks=masks), (0, 0, 0))
    assert shown.boxes.shape == (0, 4)
    assert (shown.masks is None) != masks
    if masks:
        assert isinstance(shown.masks, torch.Tensor)
        assert shown.masks.shape == (0, 10, 10)


def test_masks_outside_the_window_are_not_decoded() -> None:
    class Counting:
        asked: list[int] = []  # noqa: RUF012

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int, /) -> torch.Tensor:
            self.asked.append(index)
            return torch.ones(70, 80, dtype=torch.uint8)

    example = annotated(70, 80, BOXES, masks=False)
    example = AnnotatedImage(example.image, example.boxes, example.labels, example.crowd, Counting())
    View((0, 0, 35, 35), (35, 35), (35, 35))(example, (0, 0, 0))
    assert Counting.asked == [0]


@pytest.mark.parametrize("source", [(1, 1), (1, 4000), (7, 5), (300, 200), (481, 333)])
@pytest.mark.parametrize("scale", [0.01, 0.3, 1.0, 1.7, 50.0])
def test_view_inside_fits_source_and_canvas(source: tuple[int, int], scale: float) -> None:
    resized = max(1, round(source[0] * scale)), max(1, round(source[1] * scale))
    for share in (0, 1):
        view = view_inside(source, resized, (64, 48), lambda count, share=share: share * (count - 1))  # type: ignore[misc]
        top, left, height, width = view.window
        assert 0 <= top < top + height <= source[0]
        assert 0 <= left < left + width <= source[1]
        assert view.size == (min(64, resized[0]), min(48, resized[1]))
        assert abs(height * resized[0] / source[0] - view.size[0]) <= max(1, scale / 2 + 1e-6) + (height == 1) * scale
