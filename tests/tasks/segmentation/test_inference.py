"""Windows, scales, mirrored copies and sizes against what the same model says of the whole image at once."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fullfield.data.dense import DensePreprocess
from fullfield.errors import ConfigError
from fullfield.tasks.segmentation import inference
from fullfield.tasks.segmentation.inference import (
    InferenceOptions,
    logit_strips,
    predict_labels,
    predict_logits,
    window_starts,
)


@dataclass
class PerPixel:
    """Logits of each pixel from that pixel alone."""

    preprocess: DensePreprocess = field(default_factory=DensePreprocess)
    seen: list[tuple[int, ...]] = field(default_factory=list)

    def __call__(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape))
        r, g, b = images.unbind(1)
        return torch.stack([3 * r - g, 2 * g * b, b - r, r * r], 1)


class LeftToRight(PerPixel):
    """Logits that depend on the place within what is seen."""

    def __call__(self, images: Tensor) -> Tensor:
        logits = super().__call__(images)
        return logits + torch.linspace(0, 1, images.shape[-1])


def photo(height: int, width: int) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(height * width))


@pytest.mark.parametrize("size", [(64, 64), (100, 130), (64, 191), (20, 150), (30, 17)], ids=str)
@pytest.mark.parametrize("stride", [None, 64, 17])
def test_windows_say_what_the_whole_image_says_where_a_pixel_speaks_for_itself(
    size: tuple[int, int], stride: int | None
) -> None:
    image, model = photo(*size), PerPixel()
    torch.testing.assert_close(predict_logits(model, image, window=64, stride=stride), model(image[None])[0])
    assert all(shape[-2:] == (64, 64) for shape in model.seen[:-1])


@pytest.mark.parametrize("side", [1, 63, 64, 65, 100, 128, 191, 512])
@pytest.mark.parametrize("stride", [1, 21, 43, 64])
def test_windows_follow_mmsegmentations_rule_and_cover_every_pixel(side: int, stride: int) -> None:
    window = 64
    starts, start = [0], 0
    while start + window < side:  # the rule in words: on by a stride until the end is seen, the last moved back to it
        start += stride
        starts.append(max(min(start, side - window), 0))
    assert window_starts(side, window, stride) == starts
    covered = {place for first in starts for place in range(first, first + window)}
    assert covered >= set(range(side))


def test_overlapping_windows_are_averaged_by_how_often_a_pixel_is_seen() -> None:
    image, model = photo(32, 96), LeftToRight()
    logits = predict_logits(model, image, window=64, stride=32)
    left, right = model(image[None, :, :, :64])[0], model(image[None, :, :, 32:])[0]
    torch.testing.assert_close(logits[..., :32], left[..., :32])
    torch.testing.assert_close(logits[..., 32:64], (left[..., 32:] + right[..., :32]) / 2)
    torch.testing.assert_close(logits[..., 64:], right[..., 32:])


def test_a_side_shorter_than_the_window_is_padded_by_the_mean() -> None:
    model = PerPixel(DensePreprocess(mean=(0.1, 0.2, 0.3), std=(1, 1, 1)))
    given: list[Tensor] = []

    class Spy(PerPixel):
        def __call__(self, images: Tensor) -> Tensor:
            given.append(images)
            return model(images)

    image = photo(40, 70)
    assert predict_logits(Spy(model.preprocess), image, window=64).shape == (4, 40, 70)
    torch.testing.assert_close(given[0][0, :, :40], image[:, :, :64])
    assert given[0][0, :, 40:].flatten(1).unique(dim=1).flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_answers_come_back_at_the_size_of_the_image_after_resizing() -> None:
    image, model = photo(60, 90), PerPixel(DensePreprocess(short_side=32))
    logits = predict_logits(model, image)
    assert model.seen == [(1, 3, 32, 48)]
    resized = F.interpolate(image[None], size=(32, 48), mode="bilinear", align_corners=False, antialias=True)
    expected = F.interpolate(PerPixel()(resized), size=(60, 90), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("values", [1, 4 * 90, 4 * 90 * 7, 10**9])
@pytest.mark.parametrize("short_side", [32, 60, 133])
def test_strips_are_the_rows_of_the_whole_answer(monkeypatch: pytest.MonkeyPatch, values: int, short_side: int) -> None:
    image, model = photo(60, 90), PerPixel(DensePreprocess(short_side=short_side))
    whole = predict_logits(model, image)
    monkeypatch.setattr(inference, "_STRIP_VALUES", values)
    strips = list(logit_strips(model, image))
    assert [row for rows, _ in strips for row in range(rows.start, rows.stop)] == list(range(60))
    torch.testing.assert_close(torch.cat([strip for _, strip in strips], dim=1), whole)
    assert torch.equal(predict_labels(model, image), whole.argmax(0))


def test_scales_and_mirrored_copies_are_averaged_as_shares() -> None:
    image, model = photo(40, 60), LeftToRight()
    logits = predict_logits(model, image, scales=(1.0, 1.5), flip=True)
    shares = []
    for height, width in ((40, 60), (60, 90)):
        scaled = F.interpolate(image[None], size=(height, width), mode="bilinear", align_corners=False, antialias=True)
        for view in (model(scaled), model(scaled.flip(-1)).flip(-1)):
            shares.append(F.interpolate(view, size=(40, 60), mode="bilinear", align_corners=False)[0].softmax(0))
    torch.testing.assert_close(logits.softmax(0), torch.stack(shares).mean(0))


def test_a_mirrored_copy_makes_the_answer_to_a_mirrored_image_the_mirrored_answer() -> None:
    image, model = photo(40, 60), LeftToRight()
    plain = predict_logits(model, image, flip=True)
    torch.testing.assert_close(predict_logits(model, image.flip(-1), flip=True).flip(-1), plain)


def test_a_share_of_0_gives_finite_logits() -> None:
    class Sure(PerPixel):
        def __call__(self, images: Tensor) -> Tensor:
            return super().__call__(images) * 1e4

    assert predict_logits(Sure(), photo(8, 8), flip=True).isfinite().all()


def test_no_graph_is_kept() -> None:
    assert not predict_logits(PerPixel(), photo(8, 8).requires_grad_()).requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 31}, "window is 31"),
        ({"window": 64, "stride": 65}, "stride is 65.*from 1 to the window of 64"),
        ({"window": 64, "stride": 0}, "stride is 0"),
        ({"stride": 8}, "stride is 8.*without a window"),
        ({"scales": ()}, "scales are ()"),
        ({"scales": (1.0, 0.0)}, "above 0"),
        ({"scales": (float("nan"),)}, "above 0"),
    ],
)
def test_impossible_ways_to_look_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        InferenceOptions(**arguments)
    with pytest.raises(ConfigError, match=message):
        predict_logits(PerPixel(), photo(8, 8), **arguments)


_LARGE = """
import resource, torch
from fullfield.data.dense import DensePreprocess
from fullfield.tasks.segmentation.inference import InferenceOptions, predict_labels
class Model:
    preprocess = DensePreprocess(short_side=1000)
    def __call__(self, images):
        return images.mean(1, keepdim=True) * torch.arange(20.0).view(-1, 1, 1)
torch.set_num_threads(1)
image = torch.rand(3, 4000, 5000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
labels = predict_labels(Model(), image, InferenceOptions(window=512))
assert labels.shape == (4000, 5000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_no_strip_is_larger_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "_STRIP_VALUES", 4 * 90 * 7)
    sizes = [strip.numel() for _, strip in logit_strips(PerPixel(DensePreprocess(short_side=32)), photo(60, 90))]
    assert max(sizes) == 4 * 90 * 7
    assert len(sizes) == 9


@pytest.mark.slow
def test_a_large_photograph_takes_far_less_memory_than_its_logits() -> None:
    done = subprocess.run([sys.executable, "-c", _LARGE], capture_output=True, text=True, check=True)
    grown = int(done.stdout) * (1 if sys.platform == "darwin" else 1024)
    assert grown < 0.75 * 2**30  # the logits of 20 classes are 1.6 GB
