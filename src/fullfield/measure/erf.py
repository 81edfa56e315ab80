"""Effective receptive field: which input pixels really move a unit of a feature map, averaged over images.

Source: Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", NeurIPS 2016:
the gradient of a unit with respect to the image. Two procedures:

- `preset="replknet"`: exactly that of Ding et al., "Scaling Up Your Kernels to 31x31", CVPR 2022, and of the papers
  that compare with it: 1024 x 1024 pixels, 50 images, the centre of the last map, positive parts of the channels
  summed, positive part of the gradient, areas on log10(x + 1).
- ours (the default): the model's own image size, every channel with a random sign (sums of channels are constant after
  a LayerNorm, and cancel elsewhere), magnitude of the gradient, areas on the contributions as they are, distances from
  the middle of the unit's own field, and a standard error over the images: the images are dealt into at most ten
  groups, and every number is taken again without each (delete-a-group jackknife), so that memory does not grow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fullfield.errors import ConfigError
from fullfield.measure import erf_statistics as statistics
from fullfield.measure.erf_average import Objects, group_size, memory_for_one, sum_by_group
from fullfield.measure.erf_gradient import CHANNELS, GRADIENTS, Unit, explain_no_gradient
from fullfield.measure.erf_images import ImageSource, open_images
from fullfield.measure.erf_model import MeasuredModel, open_measured
from fullfield.measure.erf_probe import dependence_window
from fullfield.measure.erf_result import Erf
from fullfield.measure.erf_statistics import Area, Map
from fullfield.measure.feature_maps import FeatureMap, feature_map, frozen, last_layer, list_feature_maps, stage_layers
from fullfield.measure.receptive_field import ReceptiveField, receptive_field
from fullfield.ops.dispatch import one_of
from fullfield.tasks.source import OpenedModel

__all__ = ["PRESETS", "Preset", "erf", "erf_of_layers", "erf_of_stages", "layers_of"]

NUMBERS = ("half_mass_radius", "coverage", "support", "elongation", "strips")

ModelSource = str | Path | nn.Module | OpenedModel | MeasuredModel


@dataclass(frozen=True)
class Preset:
    """A procedure."""

    channels: str | int = "signs"
    """How the unit's channels become one number, see `erf_gradient.CHANNELS`."""
    gradient: str = "absolute"
    """What of the gradient counts, see `erf_gradient.GRADIENTS`."""
    image_size: int | None = None
    """Pixels; None for the model's own."""
    count: int = 50
    """Images."""
    published: bool = False
    """Prepare the images and take the areas as RepLKNet's scripts do."""


PRESETS = {"fullfield": Preset(), "replknet": Preset("relu", "positive", image_size=1024, published=True)}


def erf(
    model: ModelSource,
    images: ImageSource = None,
    layer: str | None = None,
    position: tuple[int, int] | None = None,
    preset: str | None = None,
    *,
    channels: str | int | None = None,
    gradient: str | None = None,
    image_size: int | None = None,
    count: int | None = None,
    objects: Objects | None = None,
    batch_size: int = 8,
    seed: int = 0,
    pretrained: bool = False,
    device: str = "auto",
) -> Erf:
    """Measure the effective receptive field of one unit.

    Args:
        model: A module, a registered name, a run folder, a weights file, or "path/to/file.py:factory".
        images: A tensor (N, C, H, W) that is preprocessed already; a file, a folder or several; "sample:NAME"; or None
            for seeded noise.
        layer: A name of `list_feature_maps`; None for the last stage (of a dense model, its output).
        position: (row, column) of the unit; None for the centre, (h // 2, w // 2).
        preset: "fullfield" (the default) or "replknet".
        channels: "signs", "relu", "sum", or the index of one channel; None for the preset's.
        gradient: "absolute", "positive" or "signed"; None for the preset's.
        image_size: Side in pixels; None for the preset's, or else the model's.
        count: At most so many images; None for the preset's 50.
        objects: Where the object is on each image, in pixels of the model's input: masks (N, H, W), or boxes (left,
            top, right, bottom). They give `outside`.
        batch_size: Images at a time; halved where memory runs out.
        seed: Of noise and signs.
        pretrained: For a registered name: fetch timm's weights.
        device: For a model that is opened here: "auto", "cpu", "cuda", ...

    Returns:
        The map with its numbers. Noise and signs belong to the image's index: the batch size changes rounding alone.

    Raises:
        ConfigError: An argument is impossible, the layer or position does not exist, the model can't take images of
            this size or does not depend on them, or memory does not suffice for one image.
        CheckpointError: The path holds no usable weights, or an activation is not finite.
        ModelNotFoundError: Neither a path nor a registered name.
        DataError: A path holds no image.
        ImageError: An image can't be read.
    """
    name = one_of("preset", preset or "fullfield", tuple(PRESETS))
    given = {"channels": channels, "gradient": gradient, "image_size": image_size, "count": count}
    settings = replace(PRESETS[name], **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]
    _check(settings, name, batch_size)
    if settings.published and position is not None:
        raise ConfigError(f"the preset {name} is for the centre; leave out the position, or leave out the preset")
    measured = open_measured(model, pretrained=pretrained, device=device, image_size=settings.image_size)
    opened = open_images(
        images,
        measured.preprocess,
        image_size=None if isinstance(images, Tensor) and image_size is None else settings.image_size,
        count=settings.count,
        published=settings.published,
        seed=seed,
    )
    with frozen(measured.model), memory_for_one(opened.size):
        first = opened.read(0)[None].to(measured.device, measured.dtype)
        layer = layer or last_layer(measured.model, first)
        with torch.no_grad():
            shape = feature_map(measured.model, layer, first).shape
        unit = Unit(layer, _place(position, layer, shape), settings.channels, settings.gradient)
        _check_channel(unit, shape)
        theory = receptive_field(measured.model, layer, first)
        _check_size(layer, theory, opened.size)
        groups, outside = sum_by_group(measured, unit, opened, shape[1], batch_size, seed, objects)
        total = sum(groups.values(), start=np.zeros(opened.size)) / opened.count
        if not total.any():
            raise ConfigError(explain_no_gradient(measured.model, unit, first))
        probed = None if theory.followed else dependence_window(measured.model, layer, unit.position, first)
    map_size = (shape[2], shape[3])
    centre = _centre(theory, unit.position, map_size, opened.size)
    numbers = _numbers(total, centre, settings.published)
    without = [
        _numbers((total * opened.count - part) / (opened.count - size), centre, settings.published)
        for group, part in groups.items()
        if (size := group_size(group, opened.count)) < opened.count
    ]
    magnitude = np.abs(total)
    return Erf(
        model=measured.name,
        weights=measured.weights,
        layer=layer,
        map_size=map_size,
        position=unit.position,
        centre=centre,
        images=opened.description,
        count=opened.count,
        channels=unit.channels,
        gradient=unit.gradient,
        preset=name,
        map=total,
        squares=_squares(magnitude, centre, settings.published),
        rectangles={}
        if settings.published
        else {t: statistics.smallest_rectangle(magnitude, centre, t) for t in statistics.THRESHOLDS},
        profile=statistics.radial_profile(magnitude, centre),
        theory=theory,
        probed=probed,
        outside=float(np.mean(outside)) if outside else None,
        errors=_errors(without, outside),
        **{key: numbers[key] for key in NUMBERS},
    )


def erf_of_stages(model: ModelSource, images: ImageSource = None, **arguments: object) -> list[Erf]:
    """Measure the last layer of every stage, in order; arguments as of `erf`, without `layer`."""
    return erf_of_layers(model, images, None, **arguments)


def erf_of_layers(
    model: ModelSource, images: ImageSource = None, layers: Sequence[str] | None = None, **arguments: object
) -> list[Erf]:
    """Measure several layers of one model, which is opened once.

    Args:
        model: As of `erf`.
        images: As of `erf`.
        layers: Names of `list_feature_maps`, "" for the model's last; None for the last layer of every stage.
        arguments: The others of `erf`.

    Returns:
        One result a layer, in order.
    """
    name = one_of("preset", str(arguments.get("preset") or "fullfield"), tuple(PRESETS))
    side = arguments.get("image_size") or PRESETS[name].image_size
    opening = {key: arguments.pop(key) for key in ("pretrained", "device") if key in arguments}
    measured = open_measured(model, image_size=side, **opening)  # type: ignore[arg-type]
    if layers is None:
        with frozen(measured.model):
            layers = stage_layers(measured.model, _blank(measured, images, side))
    return [erf(measured, images, layer, **arguments) for layer in layers]  # type: ignore[arg-type]


def layers_of(model: ModelSource, image_size: int | None = None) -> list[FeatureMap]:
    """Return the layers of a model that can be measured, in the order in which they run.

    Args:
        model: As of `erf`.
        image_size: Side in pixels; None for the model's own.

    Raises:
        ConfigError: The model can't take images of this size.
    """
    measured = open_measured(model, image_size=image_size)
    with frozen(measured.model):
        return list_feature_maps(measured.model, _blank(measured, None, image_size))


def _blank(measured: MeasuredModel, images: ImageSource, side: object) -> Tensor:
    """Return one image of the size that will be measured, to find layers with."""
    if isinstance(images, Tensor):
        return images[:1].to(measured.device, measured.dtype)
    size = side if isinstance(side, int) else measured.preprocess.image_size
    return torch.zeros(1, measured.preprocess.channels, size, size, device=measured.device, dtype=measured.dtype)


def _check(settings: Preset, name: str, batch_size: int) -> None:
    if isinstance(settings.channels, str):
        one_of("channels", settings.channels, CHANNELS)
    one_of("gradient", settings.gradient, GRADIENTS)
    fixed = PRESETS["replknet"]
    if settings.published and (settings.channels, settings.gradient) != (fixed.channels, fixed.gradient):
        raise ConfigError(f"the preset {name} fixes channels and gradient; leave them out, or leave out the preset")
    if settings.gradient == "signed" and settings.channels == "signs":
        raise ConfigError(
            "gradient='signed' averages to nothing over random signs; set channels='sum' or one channel (--channel 0)"
        )
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    if settings.image_size is not None and settings.image_size < 1:
        raise ConfigError(f"image_size must be at least 1 pixel, got {settings.image_size}")


def _place(position: tuple[int, int] | None, layer: str, shape: Sequence[int]) -> tuple[int, int]:
    h, w = shape[2:]
    y, x = (h // 2, w // 2) if position is None else position
    if not (0 <= y < h and 0 <= x < w):
        raise ConfigError(
            f"the position {(y, x)} lies outside the map of {layer!r}, which has {h} x {w} units: rows 0 to {h - 1},"
            f" columns 0 to {w - 1}"
        )
    return y, x


def _check_channel(unit: Unit, shape: Sequence[int]) -> None:
    if isinstance(unit.channels, int) and not 0 <= unit.channels < shape[1]:
        raise ConfigError(f"{unit.layer!r} has channels 0 to {shape[1] - 1}, got {unit.channels}")


def _check_size(layer: str, theory: ReceptiveField, image_size: tuple[int, int]) -> None:
    if theory.stride is not None and any(s > side for s, side in zip(theory.stride, image_size, strict=True)):
        H, W = image_size
        raise ConfigError(
            f"images of {H} x {W} pixels are smaller than the stride of {layer!r}, {theory.stride[0]:.0f} pixels: its"
            f" map is padding; set image_size to at least {max(theory.stride):.0f}, better several times that"
        )


def _centre(
    theory: ReceptiveField, position: tuple[int, int], map_size: tuple[int, int], image_size: tuple[int, int]
) -> tuple[int, int]:
    """Return the pixel in the middle of the unit's field; where theory does not know it, that of its cell."""
    middle = theory.centre_of(position)
    if middle is None:
        cells = zip(position, map_size, image_size, strict=True)
        middle_y, middle_x = ((p + 0.5) * pixels / units - 0.5 for p, units, pixels in cells)
    else:
        middle_y, middle_x = middle
    # between two pixels the lower one, as H // 2 is for even H
    pixels_y, pixels_x = math.floor(middle_y + 0.5), math.floor(middle_x + 0.5)
    return min(max(pixels_y, 0), image_size[0] - 1), min(max(pixels_x, 0), image_size[1] - 1)


def _squares(magnitude: Map, centre: tuple[int, int], published: bool) -> dict[float, Area]:
    if published:
        return statistics.published_areas(magnitude)
    return {t: statistics.smallest_square(magnitude, centre, t) for t in statistics.THRESHOLDS}


def _numbers(mean: Map, centre: tuple[int, int], published: bool) -> dict[str, float]:
    """Return the numbers that have an error, by name."""
    magnitude = np.abs(mean)
    if not magnitude.any():
        return {}
    squares = {f"area_ratio {t}": area.ratio for t, area in _squares(magnitude, centre, published).items()}
    return squares | {
        "half_mass_radius": statistics.half_mass_radius(magnitude, centre),
        "coverage": statistics.coverage(magnitude),
        "support": statistics.support(magnitude),
        "elongation": statistics.elongation(magnitude, centre),
        "strips": statistics.strips(magnitude, centre),
    }


def _errors(without: list[dict[str, float]], outside: list[float]) -> dict[str, float]:
    """Return the delete-a-group jackknife's standard errors (Shao and Tu, "The Jackknife and Bootstrap", 1995)."""
    errors = {}
    if without and all(without):
        for key in without[0]:
            values = np.array([numbers[key] for numbers in without])
            errors[key] = math.sqrt((len(values) - 1) / len(values) * ((values - values.mean()) ** 2).sum())
    if len(outside) > 1:
        errors["outside"] = float(np.std(outside, ddof=1) / math.sqrt(len(outside)))
    return errors
