"""Shift consistency: does a model answer alike, and do its maps move along, when the image moves by some pixels?

Consistency is Zhang's ("Making Convolutional Networks Shift-Invariant Again", ICML 2019, section 4.1): the share of
pairs of shifted copies of an image with the same likeliest class. The equivariance error of every stage (`shift_maps`)
shows where it is lost. Circular shifts keep all pixels and isolate the arithmetic of strides and padding; cropped
ones, windows cut from a larger image, are what a camera does.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fullfield.errors import CheckpointError, ConfigError
from fullfield.measure.cam_methods import first_not_finite
from fullfield.measure.cam_targets import one_output
from fullfield.measure.erf_gradient import is_out_of_memory
from fullfield.measure.erf_images import Images, ImageSource, open_images
from fullfield.measure.erf_model import MeasuredModel, open_measured
from fullfield.measure.feature_maps import OUTPUT, feature_map, frozen, list_feature_maps, split_layer, stage_layers
from fullfield.measure.shift_maps import cut, fractional_roll, overlap_error, relative_error, rolled
from fullfield.measure.shift_result import Consistency, Estimate, Shift, StageShift
from fullfield.progress import console, image_progress
from fullfield.tasks.source import OpenedModel

__all__ = ["shift"]

ZHANG_SHIFT = 32 / 224  # of the image's side

Values = dict[tuple[str, str], Tensor]
"""(layer or "", kind) -> (B,), one value an image."""


@dataclass(frozen=True)
class _Stage:
    layer: str
    size: tuple[int, int]
    stride: tuple[float, float]

    def steps(self, room: int | None = None) -> tuple[int, int]:
        """Return how many different whole shifts there are by axis, 0 included: circular, or within `room` pixels."""
        if any(side != int(side) for side in self.stride):
            return 1, 1
        limits = self.size if room is None else [1 + room // int(side) for side in self.stride]
        h, w = (min(limit, units) for limit, units in zip(limits, self.size, strict=True))
        return h, w


def shift(
    model: str | Path | nn.Module | OpenedModel | MeasuredModel,
    images: ImageSource = None,
    layers: Sequence[str] | None = None,
    *,
    max_shift: int | None = None,
    copies: int = 4,
    image_size: int | None = None,
    count: int = 50,
    batch_size: int = 8,
    seed: int = 0,
    pretrained: bool = False,
    device: str = "auto",
) -> Shift:
    """Measure how a model takes shifts of its images.

    Args:
        model: A module, a registered name, "path/to/file.py:factory", a run folder or a weights file.
        images: Files, folders, "sample:NAME", or a tensor (N, C, H + max_shift, W + max_shift) that is preprocessed
            already. None for seeded noise: it shows the errors of the maps, and its classes mean nothing.
        layers: Names that `fullfield erf MODEL --list-layers` prints; None for the last of every stage.
        max_shift: Pixels; None for a seventh of the image's side (Zhang's 32 of 224).
        copies: Shifted copies of an image, of which all pairs are compared; each at a random offset of 0 to max_shift
            pixels down and right.
        image_size: Side in pixels that the model sees; None for its own. For files the resized image is larger by
            max_shift, at the model's own scale, or a little enlarged where that shows more than the whole image.
        count: At most so many images.
        batch_size: Images at a time; halved where memory runs out.
        seed: Of noise and offsets, which belong to the image's index: the batch size changes rounding alone.
        pretrained: For a registered name: fetch timm's weights.
        device: For a model that is opened here: "auto", "cpu", "cuda", ...

    Returns:
        The consistency, and the errors by stage, each with its standard error over the images.

    Raises:
        ConfigError: An argument is impossible, a layer does not exist, the model has no map of more than one unit or
            can't take images of this size, or memory does not suffice for one image.
        CheckpointError: The path holds no usable weights, or an activation is not finite; the layer is named.
        ModelNotFoundError: Neither a path nor a registered name.
        DataError: A path holds no image.
        ImageError: An image can't be read.
    """
    if min(batch_size, count) < 1 or copies < 2:
        raise ConfigError(
            f"count and batch_size must be at least 1 and copies at least 2, got {count}, {batch_size} and {copies}"
        )
    measured = open_measured(model, pretrained=pretrained, device=device, image_size=image_size)
    if measured.is_backbone:
        raise ConfigError(f"{measured.name} has no class to compare; fullfield erf looks into detectors and segmenters")
    opened, room = _larger_images(measured, images, image_size, max_shift, count, seed)
    size = (opened.size[0] - room, opened.size[1] - room)
    first = torch.zeros(1, measured.preprocess.channels, *size, device=measured.device, dtype=measured.dtype)
    if isinstance(images, Tensor):
        first = images[:1, :, : size[0], : size[1]].to(first)
    collected: dict[tuple[str, str], list[float]] = {}
    with frozen(measured.model), torch.inference_mode():
        try:
            stages = _stages(measured.model, first, layers)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise _too_large(size) from error
        for values in _in_batches(measured, opened, stages, size, room, copies, batch_size, seed, images is not None):
            for key, numbers in values.items():
                collected.setdefault(key, []).extend(numbers.tolist())

    def estimate(layer: str, kind: str) -> Estimate | None:
        return Estimate.of(collected[layer, kind]) if (layer, kind) in collected else None

    def consistency(kind: str) -> Consistency | None:
        agreement, drift = estimate("", f"{kind} agreement"), estimate("", f"{kind} drift")
        return Consistency(agreement, drift) if agreement is not None and drift is not None else None

    kinds = ("circular", "one pixel", "cropped")
    return Shift(
        model=measured.name,
        weights=measured.weights,
        image_size=size,
        images=opened.description,
        count=opened.count,
        max_shift=room,
        copies=copies,
        seed=seed,
        circular=consistency("circular"),
        cropped=consistency("cropped"),
        stages=tuple(
            StageShift(s.layer, s.size, s.stride, *(estimate(s.layer, kind) for kind in kinds)) for s in stages
        ),
    )


def _larger_images(
    measured: MeasuredModel,
    source: ImageSource,
    image_size: int | None,
    max_shift: int | None,
    count: int,
    seed: int,
) -> tuple[Images, int]:
    """Return images that are larger than what the model sees by the largest shift, and that shift in pixels."""
    if isinstance(source, Tensor):
        if image_size is not None:
            raise ConfigError("the images are tensors: their size less max_shift is image_size; leave it out")
        side = min(source.shape[-2:])
        room = round(side * ZHANG_SHIFT / (1 + ZHANG_SHIFT)) if max_shift is None else max_shift
    else:
        side = image_size or measured.preprocess.image_size
        room = round(side * ZHANG_SHIFT) if max_shift is None else max_shift
        side += room
    if not 1 <= room < side:
        raise ConfigError(
            f"max_shift must be at least 1 pixel, and smaller than the images ({side} pixels), got {room};"
            " set max_shift (--max-shift), or use larger images"
        )
    share = min(1.0, measured.preprocess.crop_share * side / (side - room))
    larger = replace(measured.preprocess, image_size=side, crop_share=share)
    return open_images(source, larger, image_size=None, count=count, published=False, seed=seed), room


def _stages(model: nn.Module, image: Tensor, layers: Sequence[str] | None) -> list[_Stage]:
    """Return the layers to measure with the size of their maps."""
    H, W = image.shape[2:]
    sizes = {entry.layer: entry.size for entry in list_feature_maps(model, image)}
    if layers is None:
        ends = stage_layers(model, image)
        named = [layer for end in ends for layer in sizes if layer.partition("[")[0] == end]
        named = named or list({size: layer for layer, size in sizes.items() if layer != OUTPUT}.values())
        if not any(max(sizes[layer]) > 1 for layer in named):
            raise ConfigError(
                f"{type(model).__name__} has no stage with a map of more than one unit at {H} x {W} pixels, so nothing"
                " can move in it; give larger images, or name layers"
            )
    else:
        named = list(dict.fromkeys(layers))
        for layer in named:
            split_layer(model, layer)
            if layer not in sizes:
                feature_map(model, layer, image)  # says why it has none
    found = []
    for layer in named:
        h, w = sizes.get(layer) or tuple(feature_map(model, layer, image).shape[2:])
        found.append(_Stage(layer, (h, w), (H / h, W / w)))
    return found


def _in_batches(
    measured: MeasuredModel,
    images: Images,
    stages: Sequence[_Stage],
    size: tuple[int, int],
    room: int,
    copies: int,
    batch_size: int,
    seed: int,
    real: bool,
) -> Iterable[Values]:
    """Yield the values of one batch of images after the other."""
    with image_progress(f"{measured.name} shifted", images.count) as advance:
        start = 0
        while start < images.count:
            chunk = range(start, min(start + batch_size, images.count))
            generators = [torch.Generator().manual_seed(seed * 1_000_003 + index) for index in chunk]
            try:
                batch = torch.stack([images.read(index) for index in chunk]).to(measured.device, measured.dtype)
                values = _equivariance(measured.model, batch, stages, size, room, generators)
                if real:
                    values |= _consistency(measured.model, batch, size, room, copies, generators)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                batch_size = _smaller(len(chunk), size, error)
                continue
            yield values
            start = chunk.stop
            advance(len(chunk))


def _equivariance(
    model: nn.Module,
    images: Tensor,
    stages: Sequence[_Stage],
    size: tuple[int, int],
    room: int,
    generators: Sequence[torch.Generator],
) -> Values:
    """Return the errors of every stage at one random shift an image."""
    window = images[:, :, : size[0], : size[1]]
    values: Values = {}
    for stage in stages:
        if max(stage.size) == 1:
            continue
        reference = feature_map(model, stage.layer, window)
        pixels = torch.tensor([int(side) for side in stage.stride])
        units = _offsets(stage.steps(), generators)
        if units is not None:
            found = feature_map(model, stage.layer, rolled(window, units * pixels))
            values[stage.layer, "circular"] = relative_error(found, rolled(reference, units))
        found = feature_map(model, stage.layer, window.roll((1, 1), dims=(-2, -1)))
        fraction = (1 / stage.stride[0], 1 / stage.stride[1])
        values[stage.layer, "one pixel"] = relative_error(found, fractional_roll(reference, fraction))
        units = _offsets(stage.steps(room), generators)
        if units is not None:
            found = feature_map(model, stage.layer, cut(images, units * pixels, size))
            values[stage.layer, "cropped"] = overlap_error(found, reference, units)
        for kind in ("circular", "one pixel", "cropped"):
            if (stage.layer, kind) in values and not bool(torch.isfinite(values[stage.layer, kind]).all()):
                raise CheckpointError(first_not_finite(model, window, stage.layer))
    return values


def _consistency(
    model: nn.Module,
    images: Tensor,
    size: tuple[int, int],
    room: int,
    copies: int,
    generators: Sequence[torch.Generator],
) -> Values:
    """Return agreement and drift of both kinds of shift; nothing for a model that is no classifier."""
    offsets = [_drawn((room + 1, room + 1), generators) for _ in range(copies)]
    window = images[:, :, : size[0], : size[1]]
    values: Values = {}
    for kind in ("circular", "cropped"):
        shares = []
        for offset in offsets:
            logits = one_output(model(rolled(window, offset) if kind == "circular" else cut(images, offset, size)))
            if not isinstance(logits, Tensor) or logits.ndim != 2:
                return {}
            if not bool(torch.isfinite(logits).all()):
                raise CheckpointError(first_not_finite(model, window, OUTPUT))
            shares.append(logits.double().softmax(dim=1))
        pairs = list(itertools.combinations(shares, 2))
        same = [(a.argmax(dim=1) == b.argmax(dim=1)).double() for a, b in pairs]
        likeliest = shares[0].argmax(dim=1, keepdim=True)
        moved = [(a - b).gather(1, likeliest)[:, 0].abs() for a, b in pairs]
        values["", f"{kind} agreement"] = torch.stack(same).mean(dim=0)
        values["", f"{kind} drift"] = torch.stack(moved).mean(dim=0)
    return values


def _offsets(steps: tuple[int, int], generators: Sequence[torch.Generator]) -> Tensor | None:
    """Return (B, 2), an offset for every image that is not (0, 0); None where there is no other."""
    if max(steps) == 1:
        return None
    drawn = [torch.randint(1, steps[0] * steps[1], (), generator=generator) for generator in generators]
    flat = torch.stack(drawn)
    return torch.stack([flat // steps[1], flat % steps[1]], dim=1)


def _drawn(steps: tuple[int, int], generators: Sequence[torch.Generator]) -> Tensor:
    """Return (B, 2), an offset for every image, (0, 0) among them."""
    return torch.stack(
        [torch.stack([torch.randint(0, n, (), generator=generator) for n in steps]) for generator in generators]
    )


def _smaller(batch: int, size: tuple[int, int], error: BaseException) -> int:
    if batch == 1:
        raise _too_large(size) from error
    console.print(f"out of memory with {batch} images at a time; going on with {batch // 2}", style="yellow")
    return batch // 2


def _too_large(size: tuple[int, int]) -> ConfigError:
    return ConfigError(
        f"memory does not suffice for one image of {size[0]} x {size[1]} pixels; use a smaller image_size"
        " (--image-size) or another device"
    )
