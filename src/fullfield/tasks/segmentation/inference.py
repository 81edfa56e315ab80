"""Labels for images of any size: resizing, sliding windows, several scales and mirrored copies.

An image is resized by the model's preprocessing, looked at whole or through overlapping windows whose logits are
averaged, as mmsegmentation does, and what is said is brought back to the image's own pixels. That last step is done in
strips: the logits of a photograph of 5000 x 4000 pixels and 150 classes would take 12 GB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fullfield.data.dense import DensePreprocess
from fullfield.errors import ConfigError

__all__ = [
    "WHOLE_IMAGE",
    "InferenceOptions",
    "PixelModel",
    "logit_strips",
    "predict_labels",
    "predict_logits",
    "window_starts",
]

_SMALLEST_WINDOW = 32  # the coarsest map has one place there
_WINDOWS_AT_ONCE = 4
_STRIP_VALUES = 2**25  # 128 MiB of float32


class PixelModel(Protocol):
    """What can be looked through: a `Segmenter`, or anything like it."""

    preprocess: DensePreprocess

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits (B, K, H, W) of images (B, C, H, W)."""


@dataclass(frozen=True)
class InferenceOptions:
    """How an image is looked at.

    Attributes:
        window: Side of a sliding window, pixels of the resized image; None looks at it whole. A side of the image that
            is shorter is padded by the mean colour.
        stride: From one window to the next, pixels; None is two thirds of the window.
        scales: Factors on the resized image. With several, or with `flip`, the shares (softmax) of the looks are
            averaged, and the logits are the logarithm of that mean.
        flip: Whether each scale is looked at mirrored, too.

    Raises:
        ConfigError: A value is impossible.
    """

    window: int | None = None
    stride: int | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        if self.window is not None and self.window < _SMALLEST_WINDOW:
            raise ConfigError(
                f"window is {self.window}; it must be at least {_SMALLEST_WINDOW} pixels, or None to see images whole"
            )
        if self.stride is not None and (self.window is None or not 1 <= self.stride <= self.window):
            room = f"from 1 to the window of {self.window} pixels" if self.window else "left out without a window"
            raise ConfigError(f"stride is {self.stride}; it must be {room}")
        if not self.scales or not all(0 < scale < float("inf") for scale in self.scales):
            raise ConfigError(f"scales are {self.scales}; they must be numbers above 0, such as (0.5, 1.0, 1.5)")


WHOLE_IMAGE = InferenceOptions()


def predict_logits(
    model: PixelModel,
    image: Tensor,
    *,
    window: int | None = None,
    stride: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Tensor:
    """Return logits (K, H, W) at the image's own size; `predict_labels` takes less memory.

    Args:
        model: In eval mode, on the image's device.
        image: (C, H, W), values from 0 to 1.
        window: See `InferenceOptions`, as for the others.
        stride: From window to window.
        scales: Factors on the resized image.
        flip: Whether mirrored copies are looked at, too.

    Raises:
        ConfigError: An argument is impossible.
    """
    options = InferenceOptions(window, stride, tuple(scales), flip)
    return torch.cat([strip for _, strip in logit_strips(model, image, options)], dim=1)


def predict_labels(model: PixelModel, image: Tensor, options: InferenceOptions = WHOLE_IMAGE) -> Tensor:
    """Return the likeliest class of each pixel of an image (C, H, W) with values from 0 to 1, (H, W) int64."""
    labels = torch.empty(image.shape[-2:], dtype=torch.int64, device=image.device)
    for rows, logits in logit_strips(model, image, options):
        labels[rows] = logits.argmax(dim=0)
    return labels


@torch.no_grad()
def logit_strips(
    model: PixelModel,
    image: Tensor,
    options: InferenceOptions = WHOLE_IMAGE,
    *,
    size: tuple[int, int] | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows of logits from the top: which they are, and (K, rows, W).

    Memory is that of the logits at the resized size, of one batch of windows, and of one strip.

    Args:
        model: In eval mode, on the image's device.
        image: (C, H, W), values from 0 to 1.
        options: How it is looked at.
        size: (H, W) of the answer, pixels; None is the image's.
    """
    base = model.preprocess.resized(*image.shape[-2:])
    views = list(product(options.scales, (False, True) if options.flip else (False,)))
    total: Tensor | None = None
    for scale, mirrored in views:
        scaled = _resize_image(image, (max(1, round(base[0] * scale)), max(1, round(base[1] * scale))))
        logits = _view_logits(model, scaled.flip(-1) if mirrored else scaled, options.window, options.stride)
        logits = _resize_logits(logits.flip(-1) if mirrored else logits, base)
        if len(views) > 1:
            logits = logits.softmax(dim=0)
        total = logits if total is None else total.add_(logits)
    assert total is not None  # noqa: S101 - there is always a scale
    if len(views) > 1:
        total = total.div_(len(views)).clamp_(min=torch.finfo(total.dtype).tiny).log_()
    yield from _strips(total, size or (image.shape[-2], image.shape[-1]))


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """Return where windows start along a side, pixels: `stride` apart, the last ending with the image.

    It is mmsegmentation's rule: the last is moved back rather than cut, and there is one window where the image is
    smaller than it.
    """
    count = max(side - window + stride - 1, 0) // stride + 1
    return [max(min(index * stride, side - window), 0) for index in range(count)]


def _view_logits(model: PixelModel, image: Tensor, window: int | None, stride: int | None) -> Tensor:
    """Return logits (K, H, W) of an image of its final size, at least in float32."""
    if window is None:
        return _accurate(model(image[None])[0])
    height, width = image.shape[-2:]
    padded = _pad_with_mean(image, window, model.preprocess.mean)
    step = stride or max(1, round(window * 2 / 3))
    places = list(product(window_starts(padded.shape[-2], window, step), window_starts(padded.shape[-1], window, step)))
    total: Tensor | None = None
    seen = torch.zeros(padded.shape[-2:], device=image.device)
    for start in range(0, len(places), _WINDOWS_AT_ONCE):
        chunk = places[start : start + _WINDOWS_AT_ONCE]
        logits = _accurate(model(torch.stack([padded[:, y : y + window, x : x + window] for y, x in chunk])))
        if total is None:
            total = logits.new_zeros(logits.shape[1], *padded.shape[-2:])
        for (y, x), part in zip(chunk, logits, strict=True):
            total[:, y : y + window, x : x + window] += part
            seen[y : y + window, x : x + window] += 1
    assert total is not None  # noqa: S101 - there is always a window
    return total.div_(seen)[:, :height, :width]


def _pad_with_mean(image: Tensor, window: int, mean: Sequence[float]) -> Tensor:
    """Pad on the right and below to at least the window, by what becomes 0 when it is normalised."""
    height, width = image.shape[-2:]
    if height >= window and width >= window:
        return image
    colour = torch.tensor(mean, dtype=image.dtype, device=image.device).view(-1, 1, 1)
    padded = colour.expand(-1, max(height, window), max(width, window)).clone()
    padded[:, :height, :width] = image
    return padded


def _resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]


def _resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (K, h, w) to (K, H, W), bilinearly."""
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]


def _strips(logits: Tensor, size: tuple[int, int]) -> Iterator[tuple[slice, Tensor]]:
    """Yield the rows of bilinearly resized logits, as many at a time as `_STRIP_VALUES` allows."""
    classes, rows_in, _ = logits.shape
    height, width = size
    at_once = max(1, _STRIP_VALUES // (classes * width))
    scale = rows_in / height
    for top in range(0, height, at_once):
        rows = slice(top, min(top + at_once, height))
        if logits.shape[-2:] == size:
            yield rows, logits[:, rows]
            continue
        # bilinear is linear along the rows, then along the columns: the first by hand, since it is a part of them
        place = (torch.arange(rows.start, rows.stop, dtype=torch.float64) + 0.5) * scale - 0.5
        above = place.clamp(min=0).floor().long()
        below = (above + 1).clamp(max=rows_in - 1)
        weight = (place.clamp(min=0) - above).to(logits)[None, :, None]
        strip = logits[:, above.to(logits.device)].lerp(logits[:, below.to(logits.device)], weight)
        yield rows, _resize_logits(strip, (len(place), width))


def _accurate(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
